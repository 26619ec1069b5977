//! An expression to a rule.

use chrono::{DateTime, Datelike, NaiveDateTime, Utc};
use chrono_tz::{TZ_VARIANTS, Tz};

use super::calendar::Calendar;
use super::error::{Error, Reason};
use super::field::{DAY, HOUR, MINUTE, MONTH, Piece, SECOND, Set, WEEKDAY};
use super::{Rule, local};

const SECONDS_MAX: u64 = 366 * 24 * 3600;

pub(super) fn rule(expression: &str, zone: Tz) -> Result<Rule, Error> {
    let pieces = pieces(expression);
    match pieces.first() {
        Some(first) if first.text.starts_with('@') => form(*first, &pieces),
        Some(first) if first.text.eq_ignore_ascii_case("every") => every(&pieces),
        Some(first) if first.text.eq_ignore_ascii_case("at") => at(*first, &pieces, zone).map(Rule::At),
        _ => calendar(expression, &pieces).map(Rule::Calendar),
    }
}

/// What stands between white space.
fn pieces(expression: &str) -> Vec<Piece<'_>> {
    let mut position = 1;
    let mut pieces = Vec::new();
    for text in expression.split(|sign: char| sign.is_ascii_whitespace()) {
        if !text.is_empty() {
            pieces.push(Piece { text, position });
        }
        position += text.chars().count() + 1;
    }
    pieces
}

fn form(name: Piece<'_>, pieces: &[Piece<'_>]) -> Result<Rule, Error> {
    if name.text.eq_ignore_ascii_case("@every") {
        return every(pieces);
    }
    if let Some(extra) = pieces.get(1) {
        return Err(extra.fail(Reason::UnknownForm {
            name: format!("{} {}", name.text, extra.text),
        }));
    }
    let fields = match name.text.to_ascii_lowercase().as_str() {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        "@reboot" => return Err(name.fail(Reason::Reboot)),
        _ => {
            return Err(name.fail(Reason::UnknownForm {
                name: name.text.to_owned(),
            }));
        }
    };
    rule(fields, Tz::UTC)
}

/// A time on the wall, or a moment of its own.
fn at(word: Piece<'_>, pieces: &[Piece<'_>], zone: Tz) -> Result<DateTime<Utc>, Error> {
    let (place, text) = match pieces {
        [_, time] => (*time, time.text.to_owned()),
        [_, date, time] => (*date, format!("{}T{}", date.text, time.text)),
        _ => (pieces.get(3).copied().unwrap_or(word), String::new()),
    };
    let read = |format| NaiveDateTime::parse_from_str(&text, format).ok();
    let wall = || read("%Y-%m-%dT%H:%M:%S").or_else(|| read("%Y-%m-%dT%H:%M"));
    let moment = DateTime::parse_from_rfc3339(&text).ok().map(|moment| moment.to_utc());
    moment
        .or_else(|| wall().map(|wall| local::moment(zone, wall)))
        .filter(|moment| (1970..=2200).contains(&moment.year()))
        // What is stored has microseconds, and must be the same moment again.
        .and_then(|moment| DateTime::from_timestamp_micros(moment.timestamp_micros()))
        .ok_or_else(|| place.fail(Reason::Moment))
}

fn every(pieces: &[Piece<'_>]) -> Result<Rule, Error> {
    let text = pieces
        .get(1..)
        .unwrap_or_default()
        .iter()
        .map(|piece| piece.text)
        .collect::<Vec<_>>()
        .join(" ");
    let at = pieces
        .get(1)
        .or_else(|| pieces.first())
        .copied()
        .unwrap_or(Piece { text: "", position: 1 });
    // Months and years have no fixed length: `humantime` would take averages.
    let mut units = text
        .split(|sign: char| !sign.is_ascii_alphabetic())
        .filter(|unit| !unit.is_empty());
    let inexact = units.any(|unit| unit.starts_with(['M', 'y']) || unit.starts_with("mo"));
    let read = humantime::parse_duration(&text).ok().filter(|_| !inexact);
    let period = read.ok_or_else(|| at.fail(Reason::Duration { text }))?;
    if period.subsec_nanos() != 0 || !(1..=SECONDS_MAX).contains(&period.as_secs()) {
        return Err(at.fail(Reason::Interval));
    }
    Ok(Rule::Every(period))
}

fn calendar(expression: &str, pieces: &[Piece<'_>]) -> Result<Calendar, Error> {
    let zeroth = Set { bits: 1, star: false };
    let (second, rest) = match pieces {
        [second, rest @ ..] if pieces.len() == 6 => (SECOND.parse(*second)?, rest),
        rest => (zeroth, rest),
    };
    let [minute, hour, day, month, weekday] = rest else {
        // The first field too many, or the end, where one is missing.
        let position = pieces
            .get(6)
            .map_or_else(|| expression.chars().count() + 1, |extra| extra.position);
        return Err(Error::Expression {
            position,
            reason: Reason::FieldCount { found: pieces.len() },
        });
    };
    let (minute, hour) = (MINUTE.parse(*minute)?, HOUR.parse(*hour)?);
    let (day, month, weekday) = (DAY.parse(*day)?, MONTH.parse(*month)?, WEEKDAY.parse(*weekday)?);
    let calendar = Calendar {
        second,
        minute,
        hour,
        day,
        month,
        weekday,
    };
    if calendar.ever_matches() {
        Ok(calendar)
    } else {
        Err(Error::NeverFires)
    }
}

pub(super) fn zone(name: &str) -> Result<Tz, Error> {
    name.parse().map_err(|_unknown| Error::Zone {
        name: name.to_owned(),
        meant: similar_zone(name),
    })
}

/// A zone that differs in case, spaces or the continent only.
fn similar_zone(name: &str) -> Option<String> {
    let plain = |text: &str| text.trim().replace(' ', "_").to_ascii_lowercase();
    let city = |text: &str| text.rsplit('/').next().unwrap_or(text).to_owned();
    let wanted = plain(name);
    let named = |matches: &dyn Fn(&str) -> bool| TZ_VARIANTS.iter().map(|zone| zone.name()).find(|zone| matches(zone));
    named(&|zone| plain(zone) == wanted)
        .or_else(|| named(&|zone| zone.contains('/') && city(&plain(zone)) == city(&wanted)))
        .map(str::to_owned)
}
