-- Metering and budgets: what each call cost by which price, and what may still be spent.

alter table usage add column cache_write_long_tokens bigint not null default 0;
alter table usage add column reasoning_tokens bigint not null default 0;
alter table usage add column price json;
comment on column usage.input_tokens is 'All tokens of the request, those of the cache included.';
comment on column usage.cache_write_tokens is 'Of the input, tokens written to a cache of any life.';
comment on column usage.cache_write_long_tokens is 'Of those, tokens written to the cache that lives for an hour.';
comment on column usage.output_tokens is 'All tokens of the answer, reasoning included.';
comment on column usage.cost_usd is 'By the price beside it; null where no price was known.';
comment on column usage.price is 'The row of the price table that the cost was reckoned with, as it was then.';
create index usage_agent on usage (agent_id, at) where agent_id is not null;
create index usage_conversation on usage (conversation_id) where conversation_id is not null;

alter table tenants add column budget_cost_usd numeric check (budget_cost_usd >= 0);
alter table tenants add column budget_output_tokens bigint check (budget_output_tokens >= 0);
alter table tenants add column budget_window text check (budget_window in ('day', 'month', 'total'));
alter table tenants add constraint tenants_budget
    check ((budget_window is null) = (budget_cost_usd is null and budget_output_tokens is null));
comment on column tenants.budget_cost_usd is 'US dollars that calls of models may cost within the window; null is no limit.';
comment on column tenants.budget_window is 'Day and month are those of UTC.';

-- What tenants with a budget have spent. Reckoned from usage when a window begins to be looked at, then kept.
create table budgets (
    tenant_id     uuid    not null,
    began_on      date    not null,
    cost_usd      numeric not null,
    output_tokens bigint  not null,
    primary key (tenant_id, began_on)
);
comment on column budgets.began_on is 'First day of the window; 1970-01-01 for all time.';

-- What calls under way may still spend: rows, not a counter, so that a call whose worker died ends by its time.
create table budget_holds (
    id            uuid        not null primary key,
    tenant_id     uuid        not null,
    job_id        uuid        not null,
    attempt       integer     not null,
    cost_usd      numeric     not null,
    output_tokens bigint      not null,
    expires_at    timestamptz not null
);
create index budget_holds_job on budget_holds (job_id);
create index budget_holds_tenant on budget_holds (tenant_id);
create index budget_holds_expires on budget_holds (expires_at);
comment on table budget_holds is 'Upper bounds of calls under way; deleted in the statement that writes what they used.';
