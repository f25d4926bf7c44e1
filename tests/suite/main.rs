mod cli;
mod data;
mod eval;
mod files;
mod report;
