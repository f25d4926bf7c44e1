//! Metrics on disk, plots and the report page.
