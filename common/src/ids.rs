//! Ids: `UUIDv7`, so that they sort by the time they were made, each with a type of its own.
//!
//! The first 48 bits are milliseconds since 1970. Jobs are partitioned by them.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new id of the present moment.
            #[expect(clippy::new_without_default, reason = "each call makes another id, which a default must not")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }

            /// The id as a plain UUID.
            pub fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl From<$name> for Uuid {
            fn from(id: $name) -> Self {
                id.0
            }
        }
    };
}

id!(/** A job. */ JobId);
id!(/** A tenant. */ TenantId);
id!(/** An API key. */ ApiKeyId);
id!(/** One start of a worker process. */ WorkerId);
id!(/** An agent. */ AgentId);
id!(/** A conversation. */ ConversationId);
id!(/** A message of a conversation. */ MessageId);
id!(/** A stored archive of a workspace. */ ArchiveId);
id!(/** A cron schedule. */ ScheduleId);
id!(/** A question to a person: may this tool run? */ ApprovalId);

impl JobId {
    /// Below every id that is made at this moment or later.
    pub fn first_of(at: DateTime<Utc>) -> Self {
        Self(Uuid::from_u128(
            u128::try_from(at.timestamp_millis()).unwrap_or(0) << 80,
        ))
    }

    /// When it was made, in milliseconds since 1970: the first 48 bits of a `UUIDv7`.
    pub fn ms(self) -> i64 {
        i64::try_from(self.0.as_u128() >> 80).unwrap_or(i64::MAX)
    }

    /// The id of the `place`-th of the jobs that `parent` submits at this moment: above the parent's, whatever the
    /// clocks of two machines say, and in the order of the places, of which an id tells 4,096 apart.
    pub fn child_of(parent: Self, at: DateTime<Utc>, place: usize) -> Self {
        let now_ms = u64::try_from(at.timestamp_millis()).unwrap_or(0);
        let parent_ms = u64::try_from(parent.0.as_u128() >> 80).unwrap_or(0);
        let ms = u128::from(now_ms.max(parent_ms + 1));
        // The fields of a UUIDv7: 48 bits of time, version, 12 bits for the place, variant, 62 random bits.
        let random = Uuid::new_v4().as_u128() & ((1 << 62) - 1);
        let place = u128::try_from(place & 0xfff).unwrap_or(0);
        Self(Uuid::from_u128(ms << 80 | 7 << 76 | place << 64 | 0b10 << 62 | random))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_sort_after_their_parent_and_by_their_place() {
        let parent = JobId::new();
        let long_ago = DateTime::from_timestamp(1_000_000_000, 0).unwrap();
        for at in [long_ago, DateTime::from_timestamp(4_000_000_000, 0).unwrap()] {
            let children: Vec<JobId> = (0..1_000).map(|place| JobId::child_of(parent, at, place)).collect();
            assert!(children.is_sorted() && children[0] > parent);
            assert_eq!(children[0].0.get_version_num(), 7);
            assert_eq!(children[0].0.get_variant(), uuid::Variant::RFC4122);
        }
    }
}
