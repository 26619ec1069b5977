//! Spares: warm sandboxes in which Claude Code was started before anybody needs it.
//!
//! How it is started differs by model and a few settings, so what is prepared is what was asked for lately: nothing where
//! nobody uses it, and another recipe as soon as somebody comes with one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Inner;
use super::held::Creating;
use super::shelf::{Shelf, Warm};
use super::slot::vacate;
use crate::claude::{Process, Recipe};
use crate::environment;

/// Recipes that are remembered.
const RECIPES_MAX: usize = 8;

/// What was asked for lately, and what is being prepared.
#[derive(Debug, Default)]
pub(super) struct Spares {
    // Latest first, with the time of its last use.
    recipes: Vec<(Recipe, Duration)>,
    preparing: Vec<Recipe>,
}

impl Spares {
    /// It was asked for.
    pub(super) fn remember(&mut self, recipe: &Recipe, now: Duration) {
        self.forget(recipe);
        self.recipes.insert(0, (recipe.clone(), now));
        self.recipes.truncate(RECIPES_MAX);
    }

    /// It is of no use.
    pub(super) fn forget(&mut self, recipe: &Recipe) {
        self.recipes.retain(|(known, _)| known != recipe);
    }

    /// A spare is not being prepared any more.
    pub(super) fn prepared(&mut self, recipe: &Recipe) {
        if let Some(at) = self.preparing.iter().position(|preparing| preparing == recipe) {
            self.preparing.swap_remove(at);
        }
    }

    /// How many there should be.
    pub(super) fn wanted(&self, warm: &environment::Warm, now: Duration) -> u32 {
        if self.recent(warm, now).next().is_some() {
            warm.claude_code
        } else {
            0
        }
    }

    /// Whether one of this recipe should be there.
    pub(super) fn wants(&self, recipe: &Recipe, warm: &environment::Warm, now: Duration) -> bool {
        self.recent(warm, now)
            .take(warm.claude_code as usize)
            .any(|recent| recent == recipe)
    }

    /// The recipe of which one is missing beside those that are there: the places go round the recipes, latest first.
    pub(super) fn missing(&self, there: &[&Recipe], warm: &environment::Warm, now: Duration) -> Option<Recipe> {
        let recent: Vec<&Recipe> = self.recent(warm, now).collect();
        let mut there: Vec<&Recipe> = there.iter().copied().chain(&self.preparing).collect();
        let mut wanted = recent.iter().cycle().take(if recent.is_empty() {
            0
        } else {
            warm.claude_code as usize
        });
        wanted
            .find(|wanted| match there.iter().position(|recipe| *recipe == **wanted) {
                Some(at) => {
                    there.swap_remove(at);
                    false
                }
                None => true,
            })
            .map(|recipe| (*recipe).clone())
    }

    fn recent(&self, warm: &environment::Warm, now: Duration) -> impl Iterator<Item = &Recipe> {
        let idle = warm.idle;
        let recent = move |(_, used): &&(Recipe, Duration)| now.saturating_sub(*used) < idle;
        self.recipes.iter().filter(recent).map(|(recipe, _)| recipe)
    }
}

/// A spare that is being prepared; it is counted as that until this is dropped.
#[derive(Debug)]
pub(super) struct Preparing {
    shelf: Arc<Shelf>,
    recipe: Recipe,
}

impl Preparing {
    /// For the shelf itself, which has its state locked.
    pub(super) fn counted(shelf: &Arc<Shelf>, spares: &mut Spares, recipe: Recipe) -> Self {
        spares.preparing.push(recipe.clone());
        Self {
            shelf: Arc::clone(shelf),
            recipe,
        }
    }
}

impl Drop for Preparing {
    fn drop(&mut self) {
        self.shelf.prepared(&self.recipe);
    }
}

/// Starts Claude Code in a warm sandbox and puts it back on the shelf.
pub(super) async fn prepare(pool: Arc<Inner>, preparing: Preparing, mut warm: Warm, creating: Creating) {
    let Preparing { shelf, recipe } = &preparing;
    // One of a recipe that nobody wants any more.
    let is_empty = match warm.resident.take() {
        Some(resident) => {
            drop(resident);
            vacate(&warm.sandbox).await
        }
        None => true,
    };
    if !is_empty {
        return pool.destroy(warm.id, Some(warm.sandbox), creating.retire());
    }
    if !warm.sandbox.about().can_rest {
        shelf.forget(recipe);
        return pool.deliver(creating, warm);
    }
    let begun = Instant::now();
    let environment = shelf.environment.name.clone();
    match Process::spare(&warm.sandbox, recipe).await {
        Ok(resident) => {
            metrics::histogram!("hothouse_sandbox_spare_seconds", "environment" => environment)
                .record(begun.elapsed().as_secs_f64());
            warm.resident = Some(resident);
            pool.deliver(creating, warm);
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                environment,
                error,
                "Claude Code could not be started before it is needed"
            );
            // Until somebody asks for it again, so that what cannot work is not tried for ever.
            shelf.forget(recipe);
            pool.destroy(warm.id, Some(warm.sandbox), creating.retire());
        }
    }
}

#[cfg(test)]
mod tests {
    use common::agent::AgentDefinition;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn recipe(model: &str) -> Recipe {
        let model = format!("anthropic/{model}").parse().unwrap();
        Recipe::new(&AgentDefinition::default(), &model, Vec::new())
    }

    fn warm(claude_code: u32) -> environment::Warm {
        environment::Warm {
            claude_code,
            idle: 10 * S,
            ..environment::Warm::default()
        }
    }

    #[test]
    fn places_go_round_the_recipes_and_the_latest_comes_first() {
        let (a, b) = (recipe("a"), recipe("b"));
        let mut spares = Spares::default();
        assert_eq!(spares.missing(&[], &warm(2), S), None);
        assert_eq!(spares.wanted(&warm(2), S), 0);
        spares.remember(&a, S);
        assert_eq!(spares.missing(&[&a], &warm(2), S), Some(a.clone()));
        spares.remember(&b, 2 * S);
        assert_eq!(spares.missing(&[], &warm(3), 2 * S), Some(b.clone()));
        assert_eq!(spares.missing(&[&b], &warm(3), 2 * S), Some(a.clone()));
        assert_eq!(spares.missing(&[&b, &a], &warm(3), 2 * S), Some(b.clone()));
        assert_eq!(spares.missing(&[&b, &a, &b], &warm(3), 2 * S), None);
        assert!(spares.wants(&b, &warm(1), 2 * S) && !spares.wants(&a, &warm(1), 2 * S));
        spares.preparing.push(b.clone());
        assert_eq!(spares.missing(&[], &warm(1), 2 * S), None);
        spares.prepared(&b);
        assert_eq!(spares.missing(&[], &warm(1), 2 * S), Some(b));
    }

    #[test]
    fn what_nobody_uses_any_more_is_not_prepared() {
        let a = recipe("a");
        let mut spares = Spares::default();
        spares.remember(&a, S);
        assert_eq!(spares.wanted(&warm(1), 10 * S), 1);
        assert_eq!(spares.wanted(&warm(1), 11 * S), 0);
        assert_eq!(spares.missing(&[], &warm(1), 11 * S), None);
        spares.forget(&a);
        assert_eq!(spares.missing(&[], &warm(1), S), None);
    }
}
