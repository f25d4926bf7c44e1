//! What all nodes of the graph do alike.

/// Hands gradients to those parents that are tracked.
macro_rules! register {
    ($backend:ty, $grads:expr, $parents:expr, $values:expr) => {
        for (parent, value) in $parents.into_iter().zip($values) {
            if let Some(parent) = parent {
                $grads.register::<$backend>(parent.id, value);
            }
        }
    };
}

/// The primitive of a tensor on the backend that computed it.
macro_rules! primitive {
    ($backend:ty, $tensor:expr) => {
        $tensor
            .try_into_primitive::<$backend>()
            .expect("a tensor stays on the backend that it was computed on")
    };
}
