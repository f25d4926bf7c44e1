
mod scratch;
