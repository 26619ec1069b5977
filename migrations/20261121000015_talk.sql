-- Conversations: the turn that a message belongs to, what is searched, branches, messages to running jobs, and forgetting.

alter table messages add column turn bigint;
alter table messages add column said text not null default '';
comment on column messages.turn is 'Position of the user message that its turn answers. A message that waits has a lower position than the answer to the one before it, so a conversation is read by (turn, position).';
comment on column messages.said is 'Its texts as plain text, for searching; U+FFFD stands for NUL.';

-- Until now the nth turn of a conversation answered its nth message of a user.
with asked as (
    select id, conversation_id, position, row_number() over (partition by conversation_id order by position) as place
    from messages where job_id is null
), turns as (
    select id, conversation_id, row_number() over (partition by conversation_id order by id) as place
    from jobs where conversation_id is not null and redrive_of is null
)
update messages m set turn = coalesce(
    (select a.position from turns t join asked a using (conversation_id, place) where t.id = m.job_id), m.position);
update messages set said = coalesce((select string_agg(part ->> 'text', E'\n\n') from json_array_elements(parts) part
    where part ->> 'type' = 'text'), '') where strpos(parts::text, '\u0000') = 0;
alter table messages alter column turn set not null;
create index messages_turn on messages (conversation_id, turn, position);

alter table conversations add column branched_from uuid;
alter table conversations add column branched_at uuid;
alter table conversations add column forgotten_at timestamptz;
alter table conversations add constraint conversations_branch check ((branched_from is null) = (branched_at is null));
alter table conversations add constraint conversations_forgotten check (forgotten_at is null or deleted_at is not null);
comment on column conversations.branched_from is 'The conversation whose beginning this one repeats.';
comment on column conversations.branched_at is 'The message of that conversation up to which it is repeated.';
comment on column conversations.forgotten_at is 'When the content of a deleted conversation was removed; the row stays for what names it.';
create index conversations_unforgotten on conversations (deleted_at) where deleted_at is not null and forgotten_at is null;

create table job_messages (
    id         uuid        not null primary key,
    job_id     uuid        not null,
    parts      json        not null,
    created_at timestamptz not null,
    step       integer check (step >= 0),
    attempt    integer check (attempt > 0),
    check ((step is null) = (attempt is null))
);
create index job_messages_job on job_messages (job_id, id);
comment on table job_messages is 'Messages to a turn or a run that is under way. One that was not heard is added to the conversation when the turn ends.';
comment on column job_messages.step is 'The step before which the model is shown it; null until then.';
comment on column job_messages.attempt is 'The attempt that took it.';
