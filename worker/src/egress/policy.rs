//! Which destinations a job may ask for: pure.

use common::egress::{Destination, Host, List};

use super::client_hello::ClientHello;
use super::refusal::Refusal;

/// What one job, or one part of it, may connect to. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    // None: a list could not be read.
    lists: Option<(List, List)>,
}

impl Policy {
    /// What both lists name. A list that cannot be read closes everything.
    pub fn new(environment: &[String], job: &[String]) -> Self {
        let lists = (List::parse(environment), List::parse(job));
        if let (Err(error), _) | (_, Err(error)) = &lists {
            tracing::warn!(%error, "an egress list cannot be read: nothing is allowed");
        }
        let (environment, job) = lists;
        Self {
            lists: environment.ok().zip(job.ok()),
        }
    }

    /// Whether a job may connect there, as far as names go.
    pub fn check(&self, destination: &Destination) -> Result<(), Refusal> {
        let (environment, job) = self.lists.as_ref().ok_or(Refusal::BrokenList)?;
        if !environment.names(destination) {
            return Err(Refusal::NotInEnvironment);
        }
        if !job.names(destination) {
            return Err(Refusal::NotInJob);
        }
        Ok(())
    }
}

/// Whether TLS goes where its CONNECT said. An address has no name, so none may be asked for there.
pub(super) fn check_hello(hello: &ClientHello, destination: &Destination) -> Result<(), Refusal> {
    if hello.is_encrypted {
        return Err(Refusal::HiddenServerName);
    }
    match (&hello.server_name, &destination.host) {
        (None, Host::Address(_)) => Ok(()),
        (None, Host::Name(_)) => Err(Refusal::NoServerName),
        (Some(name), host @ Host::Name(_)) if Host::parse(name).as_ref() == Some(host) => Ok(()),
        (Some(_), _) => Err(Refusal::ServerNameMismatch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    #[rstest::rstest]
    #[case::both(&["*.example.org"], &["a.example.org"], "a.example.org:443", Ok(()))]
    #[case::job_is_narrower(&["*.example.org"], &["a.example.org"], "b.example.org:443", Err(Refusal::NotInJob))]
    #[case::job_is_wider(&["a.example.org"], &["*.example.org"], "b.example.org:443", Err(Refusal::NotInEnvironment))]
    #[case::ports_must_agree(&["a.org:443"], &["a.org:8443"], "a.org:8443", Err(Refusal::NotInEnvironment))]
    #[case::empty_environment(&[], &["a.org"], "a.org:443", Err(Refusal::NotInEnvironment))]
    #[case::empty_job(&["a.org"], &[], "a.org:443", Err(Refusal::NotInJob))]
    #[case::both_empty(&[], &[], "a.org:443", Err(Refusal::NotInEnvironment))]
    #[case::broken_environment(&["a.org", "*"], &["a.org"], "a.org:443", Err(Refusal::BrokenList))]
    #[case::broken_job(&["a.org"], &["a.org", ""], "a.org:443", Err(Refusal::BrokenList))]
    fn both_lists_must_name_it(
        #[case] environment: &[&str],
        #[case] job: &[&str],
        #[case] asked: &str,
        #[case] expected: Result<(), Refusal>,
    ) {
        let policy = Policy::new(&texts(environment), &texts(job));
        assert_eq!(policy.check(&Destination::parse(asked, None).unwrap()), expected);
    }

    #[test]
    fn without_lists_nothing_is_allowed() {
        let asked = Destination::parse("a.org:443", None).unwrap();
        assert_eq!(Policy::default().check(&asked), Err(Refusal::BrokenList));
    }

    #[rstest::rstest]
    #[case::same("a.org:443", Some("a.org"), Ok(()))]
    #[case::same_but_case("a.org:443", Some("A.ORG"), Ok(()))]
    #[case::other("a.org:443", Some("b.org"), Err(Refusal::ServerNameMismatch))]
    #[case::none("a.org:443", None, Err(Refusal::NoServerName))]
    #[case::address("192.0.2.1:443", None, Ok(()))]
    #[case::name_at_an_address("192.0.2.1:443", Some("a.org"), Err(Refusal::ServerNameMismatch))]
    #[case::address_as_name("192.0.2.1:443", Some("192.0.2.1"), Err(Refusal::ServerNameMismatch))]
    #[case::rubbish("a.org:443", Some("a.org\0"), Err(Refusal::ServerNameMismatch))]
    fn tls_goes_where_connect_said(
        #[case] asked: &str,
        #[case] name: Option<&str>,
        #[case] expected: Result<(), Refusal>,
    ) {
        let hello = ClientHello {
            server_name: name.map(str::to_owned),
            is_encrypted: false,
        };
        let asked = Destination::parse(asked, None).unwrap();
        assert_eq!(check_hello(&hello, &asked), expected);
        let hidden = ClientHello {
            is_encrypted: true,
            ..hello
        };
        assert_eq!(check_hello(&hidden, &asked), Err(Refusal::HiddenServerName));
    }
}
