//! Why a connection is refused, or cut.

/// Why a connection is refused, or ended before its ends did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// A list of the job or of the environment cannot be read.
    #[error("the egress list cannot be read, so nothing is allowed")]
    BrokenList,
    /// The environment does not name it.
    #[error("the environment does not allow this host and port")]
    NotInEnvironment,
    /// The job or agent does not name it.
    #[error("the job's egress.allow does not name this host and port")]
    NotInJob,
    /// The name stands for an address that is not public.
    #[error("the host's address is not public")]
    PrivateAddress,
    /// The name stands for nothing.
    #[error("the host's name cannot be resolved")]
    NoAddress,
    /// Nobody answers there.
    #[error("the host cannot be reached")]
    Unreachable,
    /// Not a request that a proxy understands.
    #[error("the request is malformed")]
    Malformed,
    /// The head is too long.
    #[error("the head of the request is too long")]
    HeadTooLarge,
    /// The head, or the begin of TLS, does not come.
    #[error("the request did not come in time")]
    TooSlow,
    /// A body whose length nobody knows.
    #[error("a request through this proxy needs a Content-Length")]
    NoLength,
    /// The Host header names another host than the address.
    #[error("the Host header and the address differ")]
    HostMismatch,
    /// CONNECT for something else than TLS.
    #[error("only TLS may follow CONNECT")]
    NotTls,
    /// TLS without a name.
    #[error("TLS without a server name")]
    NoServerName,
    /// TLS for another name than CONNECT's.
    #[error("TLS for another name than that of CONNECT")]
    ServerNameMismatch,
    /// TLS that hides its name.
    #[error("TLS that hides its server name")]
    HiddenServerName,
    /// A second request on the connection.
    #[error("a second request on one connection")]
    SecondRequest,
    /// As many at once as may be.
    #[error("too many connections at once")]
    TooManyAtOnce,
    /// As many in all as may be.
    #[error("too many connections")]
    TooMany,
    /// Too many in too short a time.
    #[error("too many connections in a short time")]
    TooFast,
    /// The job's bytes are used up.
    #[error("too many bytes")]
    TooManyBytes,
    /// Nothing moved for too long.
    #[error("nothing moved for too long")]
    Idle,
}

impl Refusal {
    /// The code of audit rows and answers; never changes.
    pub const fn code(self) -> &'static str {
        match self {
            Self::BrokenList => "broken_list",
            Self::NotInEnvironment => "not_in_environment",
            Self::NotInJob => "not_in_job",
            Self::PrivateAddress => "private_address",
            Self::NoAddress => "no_address",
            Self::Unreachable => "unreachable",
            Self::Malformed => "malformed",
            Self::HeadTooLarge => "head_too_large",
            Self::TooSlow => "too_slow",
            Self::NoLength => "no_length",
            Self::HostMismatch => "host_mismatch",
            Self::NotTls => "not_tls",
            Self::NoServerName => "no_server_name",
            Self::ServerNameMismatch => "server_name_mismatch",
            Self::HiddenServerName => "hidden_server_name",
            Self::SecondRequest => "second_request",
            Self::TooManyAtOnce => "too_many_at_once",
            Self::TooMany => "too_many",
            Self::TooFast => "too_fast",
            Self::TooManyBytes => "too_many_bytes",
            Self::Idle => "idle",
        }
    }

    /// The answer to a request that is refused with this.
    pub const fn status(self) -> &'static str {
        match self {
            Self::NoAddress | Self::Unreachable => "502 Bad Gateway",
            Self::Malformed | Self::HostMismatch | Self::SecondRequest => "400 Bad Request",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
            Self::TooSlow | Self::Idle => "408 Request Timeout",
            Self::NoLength => "411 Length Required",
            Self::TooManyAtOnce | Self::TooMany | Self::TooFast | Self::TooManyBytes => "429 Too Many Requests",
            Self::BrokenList
            | Self::NotInEnvironment
            | Self::NotInJob
            | Self::PrivateAddress
            | Self::NotTls
            | Self::NoServerName
            | Self::ServerNameMismatch
            | Self::HiddenServerName => "403 Forbidden",
        }
    }
}
