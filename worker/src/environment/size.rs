//! Sizes in files: `"512MiB"`, `"1.5GB"` or a number of bytes.

use serde::{Deserialize, Deserializer, de};

/// Bytes, read from text with a unit or from a plain number.
#[derive(Debug, Clone, Copy)]
struct Bytes(u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => parse(&text)
                .map(Self)
                .ok_or_else(|| de::Error::custom(format!("{text:?} is not a size such as \"512MiB\""))),
        }
    }
}

/// The number of bytes that a text names; fractions are rounded down.
fn parse(text: &str) -> Option<u64> {
    let text = text.trim();
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(unit_at)?;
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let places = u32::try_from(fraction.len())
        .ok()
        .filter(|places| (1..=6).contains(places))?;
    let part = fraction.parse::<u64>().ok()?.checked_mul(factor)? / 10_u64.pow(places);
    whole.parse::<u64>().ok()?.checked_mul(factor)?.checked_add(part)
}

/// The `[profile]` table.
pub(super) mod profile {
    use serde::{Deserialize, Deserializer};

    use super::Bytes;
    use crate::driver::Profile;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        cpus: Option<f64>,
        memory: Option<Bytes>,
        pids: Option<u32>,
        nofile: Option<u64>,
        workspace: Option<Bytes>,
        tmp: Option<Bytes>,
        inodes: Option<u64>,
    }

    pub(in crate::environment) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Profile, D::Error> {
        let table = Table::deserialize(deserializer)?;
        let default = Profile::default();
        Ok(Profile {
            cpus: table.cpus.unwrap_or(default.cpus),
            memory_bytes: table.memory.map_or(default.memory_bytes, |size| size.0),
            pids: table.pids.unwrap_or(default.pids),
            nofile: table.nofile.unwrap_or(default.nofile),
            workspace_bytes: table.workspace.map_or(default.workspace_bytes, |size| size.0),
            tmp_bytes: table.tmp.map_or(default.tmp_bytes, |size| size.0),
            inodes: table.inodes.unwrap_or(default.inodes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("0", 0),
            ("17", 17),
            ("17 B", 17),
            ("1KiB", 1024),
            ("1.5 GiB", 3 << 29),
            ("2MB", 2_000_000),
            ("512MiB", 512 << 20),
        ] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "MiB",
            "1 potato",
            "-1",
            "1..2",
            "1.",
            "1.0000001GiB",
            "99999999999GiB",
            "1g",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
