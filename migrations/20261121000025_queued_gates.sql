-- A line of jobs at one gate that is too long for Redis is left in Postgres, and passed over when a backlog is paged in. So
-- the gate must be known here, without a look at each job.

alter table queued_jobs add column gate text;
comment on column queued_jobs.gate is 'Where the job waits when it must: the gate of its concurrency key, else of its rate key, its agent or its conversation.';
update queued_jobs q set gate = case
        when j.concurrency_key is not null
            then 'c:' || substr(encode(sha256(uuid_send(j.tenant_id) || convert_to(j.concurrency_key, 'UTF8')), 'hex'), 1, 32)
        when j.rate_key is not null
            then 'x:' || substr(encode(sha256(uuid_send(j.tenant_id) || convert_to(j.rate_key, 'UTF8')), 'hex'), 1, 32)
        when j.agent_id is not null then 'a:' || j.agent_id
        when j.conversation_id is not null then 'v:' || j.conversation_id end
    from jobs j where j.id = q.id;
create index queued_jobs_gate on queued_jobs (tenant_id, queue, class, gate, priority, id) where gate is not null;
