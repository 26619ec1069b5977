//! One field of an expression: text to a set of numbers.

use super::error::{Error, Reason};

/// A field's place in the expression.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    name: &'static str,
    min: u8,
    max: u8,
    names: Option<&'static Names>,
}

#[derive(Debug)]
struct Names {
    kind: &'static str,
    short: &'static [&'static str],
    first: u8,
}

const MONTHS: Names = Names {
    kind: "a month's name (JAN to DEC)",
    short: &[
        "JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC",
    ],
    first: 1,
};
const WEEKDAYS: Names = Names {
    kind: "a weekday's name (SUN to SAT)",
    short: &["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
    first: 0,
};

pub(super) const SECOND: Field = Field {
    name: "second",
    min: 0,
    max: 59,
    names: None,
};
pub(super) const MINUTE: Field = Field {
    name: "minute",
    min: 0,
    max: 59,
    names: None,
};
pub(super) const HOUR: Field = Field {
    name: "hour",
    min: 0,
    max: 23,
    names: None,
};
pub(super) const DAY: Field = Field {
    name: "day",
    min: 1,
    max: 31,
    names: None,
};
pub(super) const MONTH: Field = Field {
    name: "month",
    min: 1,
    max: 12,
    names: Some(&MONTHS),
};
pub(super) const WEEKDAY: Field = Field {
    name: "weekday",
    min: 0,
    max: 7,
    names: Some(&WEEKDAYS),
};

/// A field that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Set {
    /// Bit n is set when n is in the set.
    pub(super) bits: u64,
    /// Whether the text begins with `*`: crontab(5) calls such a field unrestricted, whatever its step.
    pub(super) star: bool,
}

/// A piece of the expression and where it begins, in characters from 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    pub(super) position: usize,
}

impl<'a> Piece<'a> {
    pub(super) fn fail(self, reason: Reason) -> Error {
        Error::Expression {
            position: self.position,
            reason,
        }
    }

    /// The pieces between separators.
    fn split(self, separator: char) -> impl Iterator<Item = Piece<'a>> {
        let mut position = self.position;
        self.text.split(separator).map(move |text| {
            let piece = Piece { text, position };
            position += text.chars().count() + 1;
            piece
        })
    }

    fn split_once(self, separator: char) -> (Self, Option<Self>) {
        match self.text.split_once(separator) {
            None => (self, None),
            Some((left, right)) => {
                let after = Piece {
                    text: right,
                    position: self.position + left.chars().count() + 1,
                };
                (
                    Piece {
                        text: left,
                        position: self.position,
                    },
                    Some(after),
                )
            }
        }
    }
}

impl Field {
    /// Reads the whole field.
    pub(super) fn parse(self, piece: Piece<'_>) -> Result<Set, Error> {
        self.refuse_dialects(piece)?;
        let mut bits = 0;
        for item in piece.split(',') {
            bits |= self.item(item)?;
        }
        if self.name == WEEKDAY.name && bits & (1 << 7) != 0 {
            bits = (bits | 1) & !(1 << 7);
        }
        Ok(Set {
            bits,
            star: piece.text.starts_with('*'),
        })
    }

    /// `*`, `a`, `a-b`, each but `a` with a `/step`.
    fn item(self, piece: Piece<'_>) -> Result<u64, Error> {
        let (range, step) = piece.split_once('/');
        if range.text.is_empty() {
            return Err(range.fail(Reason::Empty { field: self.name }));
        }
        let (low, high) = if range.text == "*" {
            (self.min, self.last())
        } else {
            match range.split_once('-') {
                (_, Some(high)) => self.range(range, high)?,
                (single, None) => {
                    let value = self.value(single, false)?;
                    if let Some(step) = step {
                        let meant = format!("{value}-{}/{}", self.last(), step.text);
                        return Err(piece.fail(Reason::StepWithoutRange {
                            field: self.name,
                            meant,
                        }));
                    }
                    (value, value)
                }
            }
        };
        let step = step.map_or(Ok(1), |step| self.step(step, high - low))?;
        Ok((low..=high).step_by(step).fold(0, |bits, value| bits | 1 << value))
    }

    fn range(self, range: Piece<'_>, high: Piece<'_>) -> Result<(u8, u8), Error> {
        let (low, _) = range.split_once('-');
        let (from, to) = (self.value(low, false)?, self.value(high, true)?);
        if from <= to {
            return Ok((from, to));
        }
        let meant = match (self.name == WEEKDAY.name, to) {
            (true, 0) => format!("{}-7", low.text),
            _ => format!("{}-{},{}-{}", low.text, self.last(), self.min, high.text),
        };
        let (field, text) = (self.name, range.text.to_owned());
        Err(range.fail(Reason::Backwards { field, text, meant }))
    }

    /// The last value that is no other one's second name: 7 is the Sunday that 0 is.
    fn last(self) -> u8 {
        if self.name == WEEKDAY.name { 6 } else { self.max }
    }

    /// A number or a name. Sunday as the end of a range is the one after Saturday.
    fn value(self, piece: Piece<'_>, ends_range: bool) -> Result<u8, Error> {
        let text = piece.text;
        if text.is_empty() {
            return Err(piece.fail(Reason::Empty { field: self.name }));
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            let (field, min, max) = (self.name, self.min, self.max);
            let value = text.parse().ok().filter(|value| (min..=max).contains(value));
            return value.ok_or_else(|| {
                piece.fail(Reason::Range {
                    field,
                    value: text.to_owned(),
                    min,
                    max,
                })
            });
        }
        let Some(names) = self.names else {
            return Err(piece.fail(Reason::Number {
                field: self.name,
                text: text.to_owned(),
            }));
        };
        match names
            .short
            .iter()
            .position(|name| name.eq_ignore_ascii_case(text))
            .and_then(|at| u8::try_from(at).ok())
        {
            Some(0) if ends_range && names.first == 0 => Ok(self.max),
            Some(at) => Ok(names.first + at),
            None => {
                let start: String = text.chars().take(3).collect();
                let meant = names
                    .short
                    .iter()
                    .find(|name| name.eq_ignore_ascii_case(&start))
                    .map(|name| (*name).to_owned());
                Err(piece.fail(Reason::Name {
                    field: self.name,
                    text: text.to_owned(),
                    names: names.kind,
                    meant,
                }))
            }
        }
    }

    fn step(self, piece: Piece<'_>, span: u8) -> Result<usize, Error> {
        let field = self.name;
        if piece.text.is_empty() {
            return Err(piece.fail(Reason::Empty { field }));
        }
        if !piece.text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(piece.fail(Reason::Number {
                field,
                text: piece.text.to_owned(),
            }));
        }
        match piece.text.parse::<u32>().unwrap_or(u32::MAX) {
            0 => Err(piece.fail(Reason::StepZero { field })),
            step if step > 1 && step > u32::from(span) => Err(piece.fail(Reason::StepTooLong { field, step })),
            step => Ok(usize::try_from(step).unwrap_or(usize::MAX)),
        }
    }

    /// Signs of Quartz and others, which mean nothing here.
    fn refuse_dialects(self, piece: Piece<'_>) -> Result<(), Error> {
        for (at, sign) in piece.text.chars().enumerate() {
            let meant = match sign {
                '?' => "write *",
                '#' => "there is no n-th weekday of a month; combine days of the month, such as 1-7, in the job itself",
                'L' | 'W' | 'l' | 'w' if self.names.is_none() => {
                    "days are numbers; there is no last day and no nearest weekday"
                }
                _ => continue,
            };
            let reason = Reason::Dialect {
                field: self.name,
                sign,
                meant,
            };
            return Err(Error::Expression {
                position: piece.position + at,
                reason,
            });
        }
        Ok(())
    }
}
