//! The `[model]` settings: which providers there are and how they are reached.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use common::ids::TenantId;
use serde::{Deserialize, Serialize};

use super::anthropic::Anthropic;
use super::openai::OpenAi;
use super::scripted::Scripted;
use super::server::ServerSettings;
use super::wire::Wire;
use super::{Error, ModelProvider, Providers, RetryPolicy};

/// The names that settings may not give to servers of one's own.
const TAKEN: [&str; 3] = ["anthropic", "openai", "scripted"];

/// `[model]`: the providers of this worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Anthropic Messages, or any server that speaks it; set up when it has a key or another base URL.
    pub anthropic: ServerSettings,
    /// OpenAI Chat Completions, or any server that speaks it; set up when it has a key or another base URL.
    pub openai: ServerSettings,
    /// Further servers by the name that models have before their slash: `[model.servers.ollama]`.
    pub servers: BTreeMap<String, ServerSettings>,
    /// Keys of single tenants, by the tenant's id: `[model.tenants."…".anthropic]`. What is not there is everybody's.
    pub tenants: BTreeMap<TenantId, TenantServers>,
    /// A folder of scripts, each a model `scripted/<name>`, beside those that are built in.
    pub scripts: Option<PathBuf>,
    /// A file of prices that come before those that are built in.
    pub prices: Option<PathBuf>,
    /// How a call is tried again before its first token.
    pub retry: RetryPolicy,
}

/// The servers of one tenant.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenantServers {
    /// As `[model.anthropic]`.
    pub anthropic: ServerSettings,
    /// As `[model.openai]`.
    pub openai: ServerSettings,
    /// As `[model.servers]`.
    pub servers: BTreeMap<String, ServerSettings>,
}

type ByName = BTreeMap<String, Arc<dyn ModelProvider>>;

impl Settings {
    /// The providers that are set up. `scripted` always is.
    ///
    /// # Errors
    /// [`Error::Settings`] with a sentence that names the setting.
    pub fn providers(&self) -> Result<Providers, Error> {
        let mut scripted = Scripted::built_in();
        if let Some(folder) = self.scripts.as_ref().filter(|folder| !folder.as_os_str().is_empty()) {
            scripted.load(folder)?;
        }
        let mut everybody: ByName = BTreeMap::from([("scripted".to_owned(), Arc::new(scripted) as _)]);
        add(&mut everybody, &self.anthropic, &self.openai, &self.servers)?;
        let mut tenants = BTreeMap::new();
        for (id, own) in &self.tenants {
            let mut theirs = everybody.clone();
            add(&mut theirs, &own.anthropic, &own.openai, &own.servers)?;
            tenants.insert(*id, theirs);
        }
        Ok(Providers::of_tenants(everybody, tenants))
    }
}

/// Puts the servers that are set up among `providers`, over those of the same name.
fn add(
    providers: &mut ByName,
    anthropic: &ServerSettings,
    openai: &ServerSettings,
    servers: &BTreeMap<String, ServerSettings>,
) -> Result<(), Error> {
    if anthropic.is_set_up(Wire::Anthropic) {
        providers.insert("anthropic".to_owned(), Arc::new(Anthropic::new(anthropic)?));
    }
    if openai.is_set_up(Wire::OpenAi) {
        providers.insert("openai".to_owned(), Arc::new(OpenAi::new("openai", openai)?));
    }
    for (name, settings) in servers {
        if let Some(reason) = unusable(name, settings) {
            return Err(Error::Settings {
                provider: name.clone(),
                reason,
            });
        }
        let provider: Arc<dyn ModelProvider> = match settings.wire.unwrap_or(Wire::OpenAi) {
            Wire::Anthropic => Arc::new(Anthropic::named(name, settings)?),
            Wire::OpenAi => Arc::new(OpenAi::new(name, settings)?),
        };
        providers.insert(name.clone(), provider);
    }
    Ok(())
}

fn unusable(name: &str, settings: &ServerSettings) -> Option<String> {
    if TAKEN.contains(&name) {
        return Some(format!(
            "model.servers.{name}: the name is taken; set model.{name} instead"
        ));
    }
    if !common::job::exec::is_name(name) {
        return Some(format!(
            "model.servers.{name}: a name is lower case letters, digits, . _ or -"
        ));
    }
    settings
        .base_url
        .is_empty()
        .then(|| format!("model.servers.{name}.base_url is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::config::Secret;

    fn keyed(key: &str) -> ServerSettings {
        ServerSettings {
            api_key: Secret::from(key.to_owned()),
            ..ServerSettings::default()
        }
    }

    #[test]
    fn without_a_key_only_the_scripted_provider_is_there() {
        let providers = Settings::default().providers().unwrap();
        assert_eq!(providers.names().collect::<Vec<_>>(), ["scripted"]);
        let error = providers.of(&"anthropic/x".parse().unwrap()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no provider \"anthropic\" is set up (there are: scripted)"
        );
    }

    #[test]
    fn keys_set_up_providers_and_are_never_printed() {
        let settings = Settings {
            anthropic: keyed("sk-very-secret"),
            openai: keyed("sk-very-secret-too"),
            ..Settings::default()
        };
        let providers = settings.providers().unwrap();
        let printed = format!(
            "{settings:?} {providers:?} {}",
            serde_json::to_string(&settings).unwrap()
        );
        assert_eq!(
            providers.names().collect::<Vec<_>>(),
            ["anthropic", "openai", "scripted"]
        );
        assert!(!printed.contains("very-secret"), "{printed}");
    }

    #[test]
    fn a_server_of_ones_own_has_its_name_before_the_slash() {
        let settings: Settings = toml::from_str("[servers.ollama]\nbase_url = \"http://127.0.0.1:11434/v1\"").unwrap();
        let providers = settings.providers().unwrap();
        let ollama = providers.of(&"ollama/llama3".parse().unwrap()).unwrap();
        assert_eq!(ollama.wire(), Some(Wire::OpenAi));
        for wrong in ["[servers.openai]\nbase_url = \"http://x\"", "[servers.ollama]"] {
            let settings: Settings = toml::from_str(wrong).unwrap();
            assert!(settings.providers().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_tenant_with_a_key_of_its_own_shares_no_account() {
        let (own, other) = (TenantId::new(), TenantId::new());
        let settings = Settings {
            anthropic: keyed("everybody's"),
            tenants: BTreeMap::from([(
                own,
                TenantServers {
                    anthropic: keyed("its own"),
                    ..TenantServers::default()
                },
            )]),
            ..Settings::default()
        };
        let providers = settings.providers().unwrap();
        let account = |tenant| {
            let providers = providers.for_tenant(tenant);
            let provider = providers.of(&"anthropic/x".parse().unwrap()).unwrap();
            provider.account().name.clone()
        };
        assert_ne!(account(own), account(other));
        assert_eq!(account(other), account(TenantId::new()));
        assert!(account(own).starts_with("anthropic:"));
    }
}
