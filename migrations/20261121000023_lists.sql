-- What a list of jobs is asked for most: a queue's, a user's. Without an index a page of a queue with few jobs reads all rows
-- of all days beside it. Neither names a column that a claim or an end changes, so those stay within the row's page.

create index jobs_queue on jobs (tenant_id, queue, id);
create index jobs_user on jobs (tenant_id, user_id, id) where user_id is not null;
