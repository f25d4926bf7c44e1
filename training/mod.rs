//! The trainer: objectives, strategies, optimizer, metrics, evaluation, reports, recipes.

mod adamw;
mod burn_train;
pub mod checkpoint;
mod config;
pub mod eval;
mod gradients;
mod muon;
mod objective;
mod optim;
pub mod plan;
pub mod recipe;
pub mod report;
mod schedule;
mod source;
mod state;
pub mod strategy;
mod trainer;
mod window;

pub use self::burn_train::{Interrupter, MetricsRenderer, terminal_view_available};
pub use adamw::AdamW;
pub use config::{EmptyStep, TrainConfig};
pub use gradients::GradientSum;
pub use muon::{Muon, MuonScale};
pub use objective::{LossParts, NextToken, Objective, SplitObjective};
pub use optim::{Optimizer, OptimizerState, ParamGroup};
pub use recipe::{Recipe, RunOptions, RunSummary, run_recipe, run_recipe_with};
pub use schedule::{Decay, Schedule, Warmup};
pub use source::BatchSource;
pub use state::{Counters, TrainState};
pub use strategy::{Strategy, TrainStrategy};
pub use trainer::{Step, StepReport, Stop, TrainOutcome, Trainer};
