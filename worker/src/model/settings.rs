//! The `[model]` settings: which providers there are and how they are reached.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::anthropic::{Anthropic, AnthropicSettings};
use super::scripted::Scripted;
use super::{Error, ModelProvider, Providers, RetryPolicy};

/// `[model]`: the providers of this worker.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Anthropic Messages, or any server that speaks it; set up when it has a key or another base URL.
    pub anthropic: AnthropicSettings,
    /// A folder of `<name>.json` scripts, each a model `scripted/<name>`, beside those that are built in.
    pub scripts: Option<PathBuf>,
    /// How a call is tried again before its first token.
    pub retry: RetryPolicy,
}

impl Settings {
    /// The providers that are set up. `scripted` always is.
    ///
    /// # Errors
    /// [`Error::Settings`] with a sentence that names the setting.
    pub fn providers(&self) -> Result<Providers, Error> {
        let mut providers: BTreeMap<String, Arc<dyn ModelProvider>> = BTreeMap::new();
        let mut scripted = Scripted::built_in();
        if let Some(folder) = self.scripts.as_ref().filter(|folder| !folder.as_os_str().is_empty()) {
            scripted.load(folder)?;
        }
        providers.insert("scripted".to_owned(), Arc::new(scripted));
        if self.anthropic.is_set_up() {
            providers.insert("anthropic".to_owned(), Arc::new(Anthropic::new(&self.anthropic)?));
        }
        Ok(Providers::new(providers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::config::Secret;

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
    fn a_key_sets_up_anthropic_and_is_never_printed() {
        let anthropic = AnthropicSettings {
            api_key: Secret::from("sk-very-secret".to_owned()),
            ..AnthropicSettings::default()
        };
        let settings = Settings {
            anthropic,
            ..Settings::default()
        };
        let providers = settings.providers().unwrap();
        let printed = format!(
            "{settings:?} {providers:?} {}",
            serde_json::to_string(&settings).unwrap()
        );
        assert_eq!(providers.names().collect::<Vec<_>>(), ["anthropic", "scripted"]);
        assert!(!printed.contains("very-secret"), "{printed}");
    }
}
