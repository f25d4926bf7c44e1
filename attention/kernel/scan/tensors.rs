//! The tensors of a scan under one name each, wherever they are.

/// Makes two structs of the same fields: tensors as the forms out of tensor operations have them, and
/// primitives of a backend, which are a node's inputs or their gradients.
macro_rules! tensors {
    ($inputs:ident, $tensors:ident { $($(#[$shape:meta])* $field:ident: $rank:literal),+ $(,)? }) => {
        /// Tensors as the implementations take them.
        pub(in crate::scan) struct $inputs {
            $($(#[$shape])* pub(in crate::scan) $field: burn::tensor::Tensor<$rank>),+
        }

        /// The scan's tensors, or their gradients.
        #[derive(Clone, Debug, burn::backend::ExtensionType)]
        pub struct $tensors<B: Backend> {
            $($(#[$shape])* pub $field: FloatTensor<B>),+
        }

        impl $inputs {
            pub(in crate::scan) fn into_dispatch(self) -> $tensors<burn::backend::Dispatch> {
                $tensors { $($field: self.$field.into_dispatch()),+ }
            }

            /// From a backend that tensors know, and back.
            fn of<B: Backend>(x: $tensors<B>) -> Self
            where
                burn::backend::DispatchTensor: burn::backend::DispatchKindConversion<B>,
            {
                Self { $($field: burn::tensor::Tensor::from_primitive::<B>(x.$field)),+ }
            }

            fn into_primitives<B: Backend>(self) -> $tensors<B>
            where
                burn::backend::DispatchTensor: burn::backend::DispatchKindConversion<B>,
            {
                $tensors { $($field: primitive!(B, self.$field)),+ }
            }
        }

        impl<B: Backend> $tensors<B> {
            pub(in crate::scan) fn map<C: Backend>(
                self,
                f: impl Fn(FloatTensor<B>) -> FloatTensor<C>,
            ) -> $tensors<C> {
                $tensors { $($field: f(self.$field)),+ }
            }

            fn into_array(self) -> [FloatTensor<B>; [$($rank),+].len()] {
                [$(self.$field),+]
            }
        }
    };
}
