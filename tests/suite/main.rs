mod eval;
mod files;
