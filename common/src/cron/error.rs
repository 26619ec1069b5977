//! What is wrong with an expression, where, and what was meant.

/// Why there is no [`super::Cron`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The expression cannot be read.
    #[error("character {position}: {reason}")]
    Expression {
        /// Where, counted from 1 in characters of the expression.
        position: usize,
        /// What is wrong there.
        reason: Reason,
    },
    /// The expression can be read, but no such moment ever comes.
    #[error("never fires: no year has such a day")]
    NeverFires,
    /// There is no such zone.
    #[error("unknown time zone {name:?}: use a name of the IANA database such as Europe/Berlin{}", suggestion(.meant.as_deref()))]
    Zone {
        /// What was written.
        name: String,
        /// A zone that looks like it.
        meant: Option<String>,
    },
}

/// What is wrong at a position.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say what each means")]
pub enum Reason {
    #[error("an expression has 5 fields (minute hour day month weekday), or 6 with seconds in front; this has {found}")]
    FieldCount { found: usize },
    #[error("unknown form {name:?}: use @hourly, @daily, @weekly, @monthly or @yearly, or fields")]
    UnknownForm { name: String },
    #[error("@reboot has no time: a schedule fires by the clock")]
    Reboot,
    #[error("{text:?} is not a duration: write for example `every 90s` or `every 1h30m`")]
    Duration { text: String },
    #[error("an interval is whole seconds, from 1s to 366d")]
    Interval,
    #[error("a time is written as `at 2026-12-01T09:00`, on the wall of the zone, or `at 2026-12-01T09:00:00Z`")]
    Moment,
    #[error("{field}: something is missing here")]
    Empty { field: &'static str },
    #[error("{field}: {value} is outside {min} to {max}{}", sunday(.field))]
    Range {
        field: &'static str,
        value: String,
        min: u8,
        max: u8,
    },
    #[error("{field}: {text:?} is neither a number nor {names}{}", suggestion(.meant.as_deref()))]
    Name {
        field: &'static str,
        text: String,
        names: &'static str,
        meant: Option<String>,
    },
    #[error("{field}: {text:?} is not a number")]
    Number { field: &'static str, text: String },
    #[error("{field}: the range {text:?} runs backwards: write {meant:?}")]
    Backwards {
        field: &'static str,
        text: String,
        meant: String,
    },
    #[error("{field}: a step needs a range: write {meant:?}")]
    StepWithoutRange { field: &'static str, meant: String },
    #[error("{field}: a step is at least 1")]
    StepZero { field: &'static str },
    #[error("{field}: a step of {step} leaves the range after its first value{}", longer(.field, *.step))]
    StepTooLong { field: &'static str, step: u32 },
    #[error("{field}: {sign:?} belongs to another dialect of cron: {meant}")]
    Dialect {
        field: &'static str,
        sign: char,
        meant: &'static str,
    },
}

fn suggestion(meant: Option<&str>) -> String {
    meant.map_or_else(String::new, |meant| format!("; did you mean {meant}?"))
}

fn sunday(field: &str) -> &'static str {
    if field == "weekday" {
        " (0 and 7 are Sunday)"
    } else {
        ""
    }
}

fn longer(field: &str, step: u32) -> String {
    match field {
        "second" => format!(": write `every {step}s`"),
        "minute" => format!(": write `every {step}m`"),
        "hour" => format!(": write `every {step}h`"),
        _ => String::new(),
    }
}
