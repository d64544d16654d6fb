//! One loop, compiled twice: for the baseline of the target and for AVX2 with FMA, chosen when it runs.
//!
//! Both versions do the same operations in the same order (Rust fuses a multiplication with an addition only where `mul_add` says so), so
//! they give the same bits.

/// A loop whose [`run`](Task::run) is marked `#[inline(always)]`, so that it is compiled into either caller.
pub trait Task {
    /// Runs the loop.
    fn run(self);
}

/// Runs the task with the widest vectors of this processor.
pub fn run<T: Task>(task: T) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        #[target_feature(enable = "avx2,fma")]
        fn wide<T: Task>(task: T) {
            task.run();
        }
        // SAFETY: the processor has AVX2 and FMA.
        return unsafe { wide(task) };
    }
    task.run();
}
