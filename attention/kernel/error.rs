//! What the kernels refuse.

/// Input that a kernel cannot compute with.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes do not fit each other or the mask.
    #[error("{op}: {reason}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// What does not fit, with the numbers.
        reason: String,
    },
    /// A mask's settings contradict each other or the sequence.
    #[error("mask: {field} is {value}; {reason}")]
    Mask {
        /// The setting.
        field: &'static str,
        /// Its value.
        value: String,
        /// Why it cannot be used.
        reason: String,
    },
    /// The chosen implementation cannot run this.
    #[error("{op}: {reason}")]
    Unsupported {
        /// The operation.
        op: &'static str,
        /// What is not available.
        reason: String,
    },
}

impl Error {
    pub(crate) fn shape(op: &'static str, reason: impl Into<String>) -> Self {
        Self::Shape { op, reason: reason.into() }
    }

    pub(crate) fn mask(
        field: &'static str,
        value: impl ToString,
        reason: impl Into<String>,
    ) -> Self {
        Self::Mask { field, value: value.to_string(), reason: reason.into() }
    }
}
