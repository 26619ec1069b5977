-- Windows of budgets were not charged for calls that had begun before the budget was set, nor while it was not set. What they
-- have spent is reckoned from usage again when somebody looks, for which the facts of a user are found by an index.

delete from budgets;
create index usage_user on usage (tenant_id, user_id, at) where user_id is not null;
