//! Products of tiles with AMX: one instruction multiplies 16 rows with 16 columns of 16 quads.
//!
//! The compiler offers no stable functions for these instructions, so they are written as assembly. The tiles of a
//! thread must be configured before use, and Linux wants to be asked for them.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count};
use std::sync::LazyLock;

use super::gemm::{Operands, Sums, TILE};
use super::pack::{CELL, LANES, block_len};

/// Does this processor have the instructions, and may this process use them?
pub fn available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
        #[allow(unused_unsafe)] // of later compilers they are safe
        // SAFETY: every x86-64 processor has the instruction.
        let features = unsafe { if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 } };
        // Tiles (24), their products of bytes (25).
        features >> 24 & 3 == 3 && permitted()
    });
    *AVAILABLE
}

/// Asks Linux to keep the tiles of this process' threads when it switches between them.
fn permitted() -> bool {
    const ARCH_PRCTL: usize = 158;
    const REQUEST_PERMISSION: usize = 0x1023;
    const TILE_DATA: usize = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call changes nothing but what may be done from now on; the kernel overwrites rcx and r11.
    unsafe {
        asm!("syscall", inout("rax") result, in("rdi") REQUEST_PERMISSION, in("rsi") TILE_DATA,
            out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// All tiles of this thread as 16 rows of 64 bytes, for as long as this lives.
pub struct Tiles(());

impl Tiles {
    /// Configures the tiles. Only for [`Level::Amx`](super::Level::Amx), which detection alone makes.
    pub fn new() -> Self {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        config.bytes[..8].fill(CELL as u16);
        config.rows[..8].fill(LANES as u8);
        // SAFETY: the processor has tiles and the kernel permits them; the configuration is 64 bytes long and says
        // what every such processor can do.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly)) }
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: no tile is read before they are configured again.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

/// Two by two tiles: `$multiply` is the instruction for the signs of the operands.
macro_rules! two_by_two {
    ($multiply:literal, $a:expr, $b:expr, $steps:expr, $out:expr) => {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{a0} + {cell}]",
            "tileloadd tmm6, [{b0} + {cell}]",
            concat!($multiply, " tmm0, tmm4, tmm6"),
            "tileloadd tmm7, [{b1} + {cell}]",
            concat!($multiply, " tmm1, tmm4, tmm7"),
            "tileloadd tmm5, [{a1} + {cell}]",
            concat!($multiply, " tmm2, tmm5, tmm6"),
            concat!($multiply, " tmm3, tmm5, tmm7"),
            "add {a0}, 1024",
            "add {a1}, 1024",
            "add {b0}, 1024",
            "add {b1}, 1024",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{out} + {line}], tmm0",
            "tilestored [{out} + {line} + 64], tmm1",
            "tilestored [{out} + {line} + 2048], tmm2",
            "tilestored [{out} + {line} + 2112], tmm3",
            a0 = inout(reg) $a[0] => _,
            a1 = inout(reg) $a[1] => _,
            b0 = inout(reg) $b[0] => _,
            b1 = inout(reg) $b[1] => _,
            steps = inout(reg) $steps => _,
            out = in(reg) $out,
            cell = in(reg) CELL,
            line = in(reg) 4 * TILE,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// The sums of operands that are one tile of the product. [`Tiles`] must live.
pub fn tile<const SIGNED_ROWS: bool>(operands: Operands<SIGNED_ROWS>, sums: &mut Sums) {
    let Operands { quads, rows, columns, .. } = operands;
    let (len, steps) = (block_len(quads), quads.div_ceil(LANES));
    assert!(steps > 0 && rows.len() >= len && columns.len() >= len);
    // Where there is but one block it takes the place of the other: a single chain of products would take as long.
    let second = |cells: usize| if cells >= 2 * len { len } else { 0 };
    let a = [rows.as_ptr(), rows[second(rows.len())..].as_ptr()];
    let b = [columns.as_ptr(), columns[second(columns.len())..].as_ptr()];
    // SAFETY: the four pointers are starts of blocks of `steps` steps of 1024 bytes, of which each pass reads one; the
    // sums are 32 lines of 128 bytes, to whose quarters the tiles are stored.
    unsafe {
        if SIGNED_ROWS {
            two_by_two!("tdpbsud", a, b, steps, sums.0.as_mut_ptr());
        } else {
            two_by_two!("tdpbusd", a, b, steps, sums.0.as_mut_ptr());
        }
    }
}
