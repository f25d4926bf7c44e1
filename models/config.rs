//! `config.json`, read as it is.
