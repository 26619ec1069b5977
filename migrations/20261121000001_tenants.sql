-- Who uses Hothouse: tenants, and the API keys that speak for them.

create table tenants (
    id           uuid        not null primary key,
    name         text        not null unique check (length(name) between 1 and 200),
    weight       integer     not null default 1 check (weight between 1 and 1000),
    priority_max smallint    not null default 9 check (priority_max between 0 and 9),
    max_running  integer     check (max_running > 0),
    rate         integer     check (rate > 0),
    created_at   timestamptz not null
);
comment on table tenants is 'An isolated customer: every other row names one, and nobody sees another''s rows.';
comment on column tenants.weight is 'Share of the workers relative to other tenants that have work waiting.';
comment on column tenants.priority_max is 'Highest level that its jobs may ask for.';
comment on column tenants.max_running is 'Jobs that may run at once; null is no limit.';
comment on column tenants.rate is 'Requests a second over HTTP; null is the operator''s default.';

create table api_keys (
    id         uuid        not null primary key,
    tenant_id  uuid        not null references tenants,
    name       text        not null default '',
    role       text        not null check (role in ('admin', 'member')),
    prefix     text        not null,
    hash       bytea       not null unique check (length(hash) = 32),
    created_at timestamptz not null,
    revoked_at timestamptz
);
create index api_keys_tenant on api_keys (tenant_id);
comment on column api_keys.role is 'admin may act for every tenant and operate the system; member acts for its own.';
comment on column api_keys.prefix is 'First characters of the key, so that a person can tell keys apart.';
comment on column api_keys.hash is 'SHA-256 of the key; the key is random, so it needs no salt and is never stored.';
