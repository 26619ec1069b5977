//! Searches of conversations: pages that end with their time, and together find everything once.

use std::time::Duration;

use common::ids::ConversationId;
use common::store::conversations::{ConversationFilter, ConversationPatch};
use common::store::search::Search;
use common::testing::TestEnv;
use sqlx::PgPool;

use super::turns::conversation;

/// All pages of a search.
async fn pages(env: &TestEnv, limit: u32, time: Duration) -> Vec<Vec<ConversationId>> {
    let mut search = Search {
        text: "NEEDLE".to_owned(),
        filter: ConversationFilter::default(),
        before: None,
        limit,
        time,
    };
    let mut pages = Vec::new();
    loop {
        let found = env.store.search_conversations(env.tenant_id, &search).await.unwrap();
        pages.push(found.conversations.iter().map(|one| one.id).collect());
        if found.next.is_none() {
            return pages;
        }
        search.before = found.next;
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_search_that_takes_too_long_ends_a_page_and_goes_on_in_the_next(pool: PgPool) {
    let env = TestEnv::new(pool.clone()).await;
    let mut talks = Vec::new();
    for _ in 0..50 {
        talks.push(conversation(&pool, env.tenant_id).await);
    }
    let mut wanted = vec![talks[40], talks[1], talks[0]];
    for id in &wanted {
        let patch = ConversationPatch {
            title: Some("a Needle in a haystack".to_owned()),
            ..ConversationPatch::default()
        };
        let changed = env
            .store
            .update_conversation(env.tenant_id, *id, &patch, env.clock.now());
        changed.await.unwrap().unwrap();
    }
    let hour = Duration::from_hours(1);
    assert_eq!(pages(&env, 50, hour).await, [wanted.clone()]);
    assert_eq!(pages(&env, 2, hour).await, [vec![talks[40], talks[1]], vec![talks[0]]]);
    let hurried = pages(&env, 50, Duration::ZERO).await;
    assert_eq!(hurried.len(), 4, "{hurried:?}");
    assert!(hurried[1].is_empty(), "{hurried:?}");
    assert_eq!(hurried.concat(), wanted);
    wanted.pop();
    assert!(
        env.store
            .delete_conversation(env.tenant_id, talks[0], env.clock.now())
            .await
            .unwrap()
    );
    assert_eq!(pages(&env, 50, hour).await, [wanted]);
}
