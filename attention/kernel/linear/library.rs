//! cuBLASLt: found when it is first asked for, one handle per device, and what it said of every product.

use super::layout::Call;
use super::plan::Plan;
use crate::stream::within;
use cudarc::cublaslt::{result, sys};
use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// The library on a device.
pub(super) struct Library {
    device: i32,
    handle: sys::cublasLtHandle_t,
    version: usize,
    plans: Mutex<HashMap<Call, Result<Arc<Plan>, String>>>,
}

// Safe: a handle may be used by all threads; nothing is changed through it.
unsafe impl Send for Library {}
unsafe impl Sync for Library {}

type Found = Result<Arc<Library>, String>;

/// A handle belongs to a context, so that each device has its own.
static FOUND: LazyLock<Mutex<HashMap<i32, Found>>> = LazyLock::new(Mutex::default);

/// What is called. An old library lacks none of these, another file of that name may.
const CALLED: [&str; 13] = [
    "cublasLtCreate",
    "cublasLtGetVersion",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
    "cublasLtMatrixLayoutSetAttribute",
];

/// The oldest that has sums of gradients beside a product (CUDA 11.4).
const OLDEST: usize = 110_400;

/// The library on a device that CubeCL has opened; why it is not there, if it is not.
pub(super) fn of(device: i32) -> Found {
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    found.entry(device).or_insert_with(|| Library::open(device).map(Arc::new)).clone()
}

/// What no device's library does, each with the reason.
pub(super) fn refused() -> Vec<String> {
    let found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    found.values().flatten().flat_map(|library| library.refused()).collect()
}

impl Library {
    fn open(device: i32) -> Result<Self, String> {
        // Safe: the library is looked for and no more.
        if !unsafe { sys::is_culib_present() } {
            return Err("cuBLASLt (libcublasLt) is not installed".into());
        }
        // Safe: it is there, and symbols are looked for and no more.
        let lacks = unsafe {
            let library = sys::culib();
            let lacks =
                |name: &&&str| library.get::<unsafe extern "C" fn()>(name.as_bytes()).is_err();
            CALLED.iter().find(lacks)
        };
        if let Some(name) = lacks {
            return Err(format!("the cuBLASLt that is installed lacks {name}"));
        }
        // Safe: it is there.
        let version = unsafe { sys::cublasLtGetVersion() };
        if version < OLDEST {
            return Err(format!("cuBLASLt {} is too old", dotted(version)));
        }
        let handle = within(device, result::create_handle)
            .map_err(|e| format!("the driver: {e}"))?
            .map_err(|e| format!("cuBLASLt {} does not start: {e}", dotted(version)))?;
        Ok(Self { device, handle, version, plans: Mutex::default() })
    }

    /// As people write it.
    pub fn version(&self) -> String {
        dotted(self.version)
    }

    pub fn handle(&self) -> sys::cublasLtHandle_t {
        self.handle
    }

    /// How such a product is done; the library is asked once.
    pub fn plan(&self, call: &Call) -> Result<Arc<Plan>, String> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(plan) = plans.get(call) {
            return plan.clone();
        }
        let made = within(self.device, || Plan::new(self.handle, call));
        let made = made.map_err(|e| format!("the driver: {e}")).and_then(|made| made).map(Arc::new);
        plans.insert(*call, made.clone());
        made
    }

    /// Leaves such products to Burn from now on.
    pub fn refuse(&self, call: &Call, reason: String) {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.insert(*call, Err(reason));
    }

    fn refused(&self) -> Vec<String> {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = |(call, plan): (&Call, &Result<_, String>)| {
            plan.as_ref().err().map(|reason| format!("{call}: {reason}"))
        };
        plans.iter().filter_map(refused).collect()
    }
}

/// `120804` is 12.8.4.
fn dotted(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}
