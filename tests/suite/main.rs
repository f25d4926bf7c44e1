mod files;
mod training;
