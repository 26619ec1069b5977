-- Budgets of conversations, agents, users and models, beside those of tenants.

create table subject_budgets (
    tenant_id     uuid   not null,
    subject       text   not null check (subject ~ '^(conversation|agent|user|model):.'),
    cost_usd      numeric check (cost_usd >= 0),
    output_tokens bigint check (output_tokens >= 0),
    budget_window text   not null check (budget_window in ('day', 'month', 'total')),
    primary key (tenant_id, subject),
    check (cost_usd is not null or output_tokens is not null)
);
comment on table subject_budgets is 'What calls of models may spend for one conversation, agent, user or model of a tenant.';
comment on column subject_budgets.tenant_id is 'Whose.';
comment on column subject_budgets.subject is 'Its kind, a colon, and its id; of a model provider/model.';
comment on column subject_budgets.cost_usd is 'US dollars within the window; null is no limit.';
comment on column subject_budgets.output_tokens is 'Tokens that models write within the window; null is no limit.';
comment on column subject_budgets.budget_window is 'Day and month are those of UTC.';

alter table budgets add column subject text not null default '';
alter table budgets drop constraint budgets_pkey;
alter table budgets add primary key (tenant_id, subject, began_on);
comment on column budgets.subject is 'As in subject_budgets; empty for the whole tenant.';

alter table budget_holds add column subjects text[] not null default '{}';
comment on column budget_holds.subjects is 'The subjects with a budget that it is held against, besides the tenant.';
