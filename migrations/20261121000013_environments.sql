-- What a worker's sandboxes hold, as it says itself.

alter table workers add column environments json not null default '[]';
comment on column workers.environments is 'List of the environments that it serves, with the image that each starts from now.';
