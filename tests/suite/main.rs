mod eval;
mod files;
mod realdata;
