use super::*;

fn usd(text: &str) -> Usd {
    text.parse().unwrap()
}

fn price() -> Price {
    toml::from_str("model = \"a/b\"\nfrom = \"2026-01-01\"\ninput = \"3\"\ncache_write_short = \"4\"\noutput = \"10\"")
        .unwrap()
}

const SIZE: Size = Size {
    input_bytes: 1_000,
    output_tokens_max: 500,
    shrinks: true,
};

fn left(cost: Option<&str>, output_tokens: Option<u64>) -> Amounts {
    Amounts {
        cost: cost.map(usd),
        output_tokens,
    }
}

#[test]
fn what_is_held_is_the_dearest_that_the_call_can_become() {
    let hold = fit(Uuid::nil(), left(None, None), SIZE, Some(&price())).unwrap();
    // 1,000 tokens written to the cache, 500 of the answer.
    assert_eq!((hold.cost, hold.output_tokens), (usd("0.009"), 500));
}

#[test]
fn an_answer_is_cut_to_what_is_left_and_refused_when_that_is_next_to_nothing() {
    let fitted =
        |cost, tokens, size| fit(Uuid::nil(), left(cost, tokens), size, Some(&price())).map(|hold| hold.output_tokens);
    assert_eq!(fitted(Some("0.0065"), None, SIZE), Some(250));
    assert_eq!(fitted(Some("0.0065"), Some(100), SIZE), Some(100));
    assert_eq!(fitted(Some("0.0041"), None, SIZE), None);
    assert_eq!(fitted(Some("0.0039"), None, SIZE), None, "not even the request");
    assert_eq!(fitted(None, Some(15), SIZE), None);
    assert_eq!(fitted(None, Some(0), SIZE), None);
    let rigid = Size { shrinks: false, ..SIZE };
    assert_eq!(fitted(Some("0.0065"), None, rigid), None);
    assert_eq!(fitted(Some("0.009"), None, rigid), Some(500));
    let small = Size {
        output_tokens_max: 5,
        ..SIZE
    };
    assert_eq!(fitted(None, Some(5), small), Some(5));
}

#[tokio::test]
async fn unkept_books_number_and_price_what_they_are_told() {
    let prices = Arc::new(Prices::open(None).unwrap());
    let ledger = Ledger::unkept(prices, Clock::system());
    let usage = Usage {
        input_tokens: 1_000_000,
        output_tokens: 1_000_000,
        ..Usage::default()
    };
    let known: ModelName = "anthropic/claude-sonnet-4-6".parse().unwrap();
    let charged = ledger.open(&known, SIZE).await.unwrap().close(usage);
    assert_eq!((charged.call, charged.cost), (0, Some(usd("18"))));
    let unknown: ModelName = "nobody/knows".parse().unwrap();
    assert_eq!(ledger.open(&unknown, SIZE).await.unwrap().close(usage).cost, None);
    ledger.open(&known, SIZE).await.unwrap().release();
    drop(ledger.open(&known, SIZE).await.unwrap());
    let mut left = ledger.open(&known, SIZE).await.unwrap();
    left.ask();
    drop(left);
    let spent = ledger.end().await;
    assert_eq!((spent.calls, spent.unpriced_calls), (3, 1));
    // 250 tokens were read by the call that was left when it was made.
    assert_eq!(spent.cost, usd("18.00075"));
}
