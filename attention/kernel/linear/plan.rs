//! Products as cuBLASLt is told them, with the kernel that it has chosen.

use super::layout::{ALIGNED, Beside, Call, Factor, Numbers};
use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUstream;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

/// Bytes that a kernel may use beside its matrices: what NVIDIA recommends for Hopper.
const WORKSPACE: usize = 32 << 20;

/// Kernels that are asked for: the first may not run.
const CHOICES: usize = 8;

/// Everything about a product but its addresses.
pub(super) struct Plan {
    /// Locked: where a bias lies is written into it before every launch.
    desc: Mutex<Desc>,
    left: Matrix,
    right: Matrix,
    out: Matrix,
    algorithm: sys::cublasLtMatmulAlgo_t,
    beside: Beside,
    workspace: usize,
}

// Safe: descriptors are plain memory of the library's; the one that is changed is locked.
unsafe impl Send for Plan {}
unsafe impl Sync for Plan {}

/// Addresses on the card.
pub(super) struct At {
    pub left: u64,
    pub right: u64,
    pub out: u64,
    /// The bias or the sums; not looked at where there are none.
    pub beside: u64,
    /// A multiple of [`ALIGNED`].
    pub workspace: u64,
}

impl Plan {
    /// Asks the library, with the device's context.
    pub fn new(handle: sys::cublasLtHandle_t, call: &Call) -> Result<Self, String> {
        let asked = |e: result::CublasError| format!("cuBLASLt: {e}");
        Self::ask(handle, call)
            .map_err(asked)?
            .ok_or_else(|| "cuBLASLt has no kernel for it".into())
    }

    fn ask(
        handle: sys::cublasLtHandle_t,
        call: &Call,
    ) -> Result<Option<Self>, result::CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Of;
        use sys::cublasLtMatmulPreferenceAttributes_t as Wanted;
        let gemm = &call.gemm;
        let desc = Desc::new()?;
        desc.set(Of::CUBLASLT_MATMUL_DESC_TRANSA, order(gemm.left))?;
        desc.set(Of::CUBLASLT_MATMUL_DESC_TRANSB, order(gemm.right))?;
        desc.set(Of::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue(call.beside))?;
        if call.beside != Beside::Nothing {
            // The true address comes with the launch; here its alignment is looked at, if anything.
            desc.set(Of::CUBLASLT_MATMUL_DESC_BIAS_POINTER, u64::from(ALIGNED))?;
        }
        let stored = |of: Factor| Matrix::new(numbers(call.numbers), of.rows, of.columns, of.ld);
        let (left, right) = (stored(gemm.left)?, stored(gemm.right)?);
        let out = Matrix::new(numbers(call.out), gemm.m, gemm.n, gemm.m)?;
        let batch = gemm.batch;
        if batch.count > 1 {
            left.many(batch.count, batch.left)?;
            right.many(batch.count, batch.right)?;
            out.many(batch.count, gemm.m * gemm.n)?;
        }

        let wanted = Preference::new()?;
        wanted.set(Wanted::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE as u64)?;
        // What is split along the inner dimension is added up in f32, not in 16 bits.
        let scheme = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        wanted.set(Wanted::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, scheme)?;
        let [of_left, of_right, of_out] = call.aligned;
        for (attribute, bytes) in [
            (Wanted::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, of_left),
            (Wanted::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, of_right),
            (Wanted::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_out),
            (Wanted::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_out),
        ] {
            wanted.set(attribute, bytes)?;
        }

        // Safe: numbers, for which zeros stand; the library writes as many as it says.
        let mut choices: [sys::cublasLtMatmulHeuristicResult_t; CHOICES] =
            unsafe { std::mem::zeroed() };
        let mut count = 0;
        // Safe: all descriptors live, and there is room for so many choices.
        unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                handle,
                desc.0,
                left.0,
                right.0,
                out.0,
                out.0,
                wanted.0,
                CHOICES as i32,
                choices.as_mut_ptr(),
                &mut count,
            )
            .result()?;
        }
        let good = sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
        let chosen = choices
            .iter()
            .take(count.max(0) as usize)
            .find(|choice| choice.state == good && choice.workspaceSize <= WORKSPACE);
        Ok(chosen.map(|choice| Self {
            desc: Mutex::new(desc),
            left,
            right,
            out,
            algorithm: choice.algo,
            beside: call.beside,
            workspace: choice.workspaceSize,
        }))
    }

    /// Bytes that a launch needs beside its matrices.
    pub fn workspace(&self) -> usize {
        self.workspace
    }

    /// The product, or its sum with what is there.
    ///
    /// # Safety
    /// With the device's context, on a stream of it, and with matrices, vectors and workspace as large as
    /// the plan says and as aligned as it was asked for.
    pub unsafe fn launch(
        &self,
        handle: sys::cublasLtHandle_t,
        stream: CUstream,
        at: &At,
        add: bool,
    ) -> Result<(), String> {
        let desc = self.desc.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |e: result::CublasError| format!("a launch of cuBLASLt: {e}");
        if self.beside != Beside::Nothing {
            let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
            desc.set(attribute, at.beside).map_err(failed)?;
        }
        // D = 1·left·right + b·D, and what is multiplied by 0 is not read.
        let (one, there) = (1f32, if add { 1f32 } else { 0f32 });
        // Safe: as the caller vouches; factors are read before the call returns.
        unsafe {
            result::matmul(
                handle,
                desc.0,
                (&raw const one).cast(),
                (&raw const there).cast(),
                at.left as *const c_void,
                self.left.0,
                at.right as *const c_void,
                self.right.0,
                at.out as *const c_void,
                self.out.0,
                at.out as *mut c_void,
                self.out.0,
                &raw const self.algorithm,
                at.workspace as *mut c_void,
                self.workspace,
                stream.cast(),
            )
        }
        .map_err(failed)
    }
}

/// `CUBLAS_OP_N` or `CUBLAS_OP_T`, an enumeration of cuBLAS's own header.
fn order(of: Factor) -> u32 {
    of.turned.into()
}

fn epilogue(beside: Beside) -> sys::cublasLtEpilogue_t {
    match beside {
        Beside::Nothing => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
        Beside::Bias => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
        Beside::RowSums => sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BGRADB,
    }
}

fn numbers(of: Numbers) -> sys::cudaDataType {
    match of {
        Numbers::F32 => sys::cudaDataType::CUDA_R_32F,
        Numbers::Bf16 => sys::cudaDataType::CUDA_R_16BF,
        Numbers::F16 => sys::cudaDataType::CUDA_R_16F,
    }
}

/// The operation. f32 is f32: `CUBLAS_COMPUTE_32F` rounds no factor to TF32.
struct Desc(sys::cublasLtMatmulDesc_t);

impl Desc {
    fn new() -> Result<Self, result::CublasError> {
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F).map(Self)
    }

    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: T,
    ) -> Result<(), result::CublasError> {
        let from = (&raw const value).cast();
        // Safe: the descriptor lives, and the value is copied.
        unsafe { result::set_matmul_desc_attribute(self.0, attribute, from, size_of::<T>()) }
    }
}

impl Drop for Desc {
    fn drop(&mut self) {
        // Safe: it is freed once.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// A matrix by columns.
struct Matrix(sys::cublasLtMatrixLayout_t);

impl Matrix {
    fn new(
        numbers: sys::cudaDataType,
        rows: usize,
        columns: usize,
        ld: usize,
    ) -> Result<Self, result::CublasError> {
        result::create_matrix_layout(numbers, rows as u64, columns as u64, ld as i64).map(Self)
    }

    /// `count` of them, each so many elements from the next.
    fn many(&self, count: usize, apart: usize) -> Result<(), result::CublasError> {
        use sys::cublasLtMatrixLayoutAttribute_t as Of;
        self.set(Of::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, count as i32)?;
        self.set(Of::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, apart as i64)
    }

    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatrixLayoutAttribute_t,
        value: T,
    ) -> Result<(), result::CublasError> {
        let from = (&raw const value).cast();
        // Safe: the layout lives, and the value is copied.
        unsafe { result::set_matrix_layout_attribute(self.0, attribute, from, size_of::<T>()) }
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        // Safe: it is freed once.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What a kernel may be like.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, result::CublasError> {
        result::create_matmul_pref().map(Self)
    }

    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: T,
    ) -> Result<(), result::CublasError> {
        let from = (&raw const value).cast();
        // Safe: the preference lives, and the value is copied.
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, from, size_of::<T>()) }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // Safe: it is freed once.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
