//! Work of ours on CubeCL's own CUDA stream, so that it keeps its place among Burn's operations.

use burn_cubecl::CubeDevice;
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{BufferBinding, Handle, ServerError, ServerStorage};
use cubecl_cuda::CudaRuntime;
use cubecl_environment::backtrace::BackTrace;
use cubecl_environment::stream::StreamId;
use cubecl_server::runtime::Runtime;
use cubecl_server::stream::{ExecuteScope, WriteScoped, failed_writing};
use cudarc::driver::{result, sys};

type Server = <CudaRuntime as Runtime>::Server;

/// Runs with the context of a device, which CubeCL uses, too.
pub(crate) fn within<R>(device: i32, work: impl FnOnce() -> R) -> Result<R, result::DriverError> {
    result::init()?;
    // Safe: the device comes from the driver, and a context that is retained stays.
    unsafe {
        let context = result::primary_ctx::retain(result::device::get(device)?)?;
        let before = result::ctx::get_current()?;
        result::ctx::set_current(context)?;
        let done = work();
        result::ctx::set_current(before.unwrap_or(std::ptr::null_mut()))?;
        Ok(done)
    }
}

/// Queues `work` on the device's thread, in order with Burn's own, and returns at once. It gets CubeCL's
/// stream and the addresses of `reads`, then `writes`. What it reports as failed, whoever reads `writes`
/// is told.
pub(crate) fn submit(
    device: &CubeDevice,
    reads: Vec<Handle>,
    writes: Vec<Handle>,
    work: impl FnOnce(sys::CUstream, &[u64]) -> Result<(), String> + Send + 'static,
) {
    DeviceHandle::<Server>::new(device.to_id()).submit(move |server: &mut Server| {
        let (stream, first) = (StreamId::current(), reads.len());
        let all: Vec<BufferBinding> =
            reads.into_iter().chain(writes).map(Handle::binding).collect();
        let written = all[first..].to_vec();
        // Before the scope opens, which claims what is written.
        let found: Result<Vec<_>, ServerError> =
            all.iter().map(|x| server.get_resource(x.clone(), stream)).collect();
        let found = match found {
            Ok(found) => found,
            Err(error) => return failed_writing(server, stream, written, error),
        };
        let addresses: Vec<u64> = found.iter().map(|x| x.resource().ptr).collect();
        let _ = ExecuteScope::over(server, stream, written).execute(|server| {
            let mut streams = server.write_streams().resolve(stream, all.iter())?;
            let queue = streams.current().sys;
            work(queue, &addresses).map_err(|reason| {
                let backtrace = BackTrace::capture();
                ServerError::Generic { reason, backtrace }
            })
        });
    });
}
