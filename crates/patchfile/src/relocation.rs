//! The relocation types of x86-64: their names, and which of them a patch may contain.

/// The name of a relocation type, as in the psABI (System V ABI, AMD64 supplement, table 4.9).
pub fn relocation_name(r_type: u32) -> &'static str {
    match r_type {
        0 => "R_X86_64_NONE",
        1 => "R_X86_64_64",
        2 => "R_X86_64_PC32",
        3 => "R_X86_64_GOT32",
        4 => "R_X86_64_PLT32",
        5 => "R_X86_64_COPY",
        6 => "R_X86_64_GLOB_DAT",
        7 => "R_X86_64_JUMP_SLOT",
        8 => "R_X86_64_RELATIVE",
        9 => "R_X86_64_GOTPCREL",
        10 => "R_X86_64_32",
        11 => "R_X86_64_32S",
        12 => "R_X86_64_16",
        13 => "R_X86_64_PC16",
        14 => "R_X86_64_8",
        15 => "R_X86_64_PC8",
        16 => "R_X86_64_DTPMOD64",
        17 => "R_X86_64_DTPOFF64",
        18 => "R_X86_64_TPOFF64",
        19 => "R_X86_64_TLSGD",
        20 => "R_X86_64_TLSLD",
        21 => "R_X86_64_DTPOFF32",
        22 => "R_X86_64_GOTTPOFF",
        23 => "R_X86_64_TPOFF32",
        24 => "R_X86_64_PC64",
        25 => "R_X86_64_GOTOFF64",
        26 => "R_X86_64_GOTPC32",
        27 => "R_X86_64_GOT64",
        28 => "R_X86_64_GOTPCREL64",
        29 => "R_X86_64_GOTPC64",
        30 => "R_X86_64_GOTPLT64",
        31 => "R_X86_64_PLTOFF64",
        32 => "R_X86_64_SIZE32",
        33 => "R_X86_64_SIZE64",
        34 => "R_X86_64_GOTPC32_TLSDESC",
        35 => "R_X86_64_TLSDESC_CALL",
        36 => "R_X86_64_TLSDESC",
        37 => "R_X86_64_IRELATIVE",
        38 => "R_X86_64_RELATIVE64",
        41 => "R_X86_64_GOTPCRELX",
        42 => "R_X86_64_REX_GOTPCRELX",
        43 => "R_X86_64_CODE_4_GOTPCRELX",
        44 => "R_X86_64_CODE_4_GOTTPOFF",
        45 => "R_X86_64_CODE_4_GOTPC32_TLSDESC",
        _ => "unknown relocation type",
    }
}

/// How many bytes a relocation of a patch changes, `None` for types that no patch may contain (the GOT-relative ones of
/// `-mcmodel=medium` and `large`, and those of the dynamic loader).
pub fn relocation_width(r_type: u32) -> Option<u64> {
    Some(match r_type {
        // 64, DTPOFF64, TPOFF64, PC64
        1 | 17 | 18 | 24 => 8,
        // PC32, PLT32, GOTPCREL, 32, 32S, GOTPCRELX, REX_GOTPCRELX
        2 | 4 | 9 | 10 | 11 | 41 | 42 => 4,
        // TLSGD, TLSLD, DTPOFF32, GOTTPOFF, TPOFF32, GOTPC32_TLSDESC
        19..=23 | 34 => 4,
        // TLSDESC_CALL marks the two bytes of `call *(%rax)`.
        35 => 2,
        _ => return None,
    })
}

/// Whether the type asks for something about a thread-local variable.
pub(crate) fn is_tls(r_type: u32) -> bool {
    matches!(r_type, 17..=23 | 34 | 35)
}

/// R_X86_64_NONE: nothing to do.
pub(crate) const NONE: u32 = 0;
/// R_X86_64_64: the only type that a pointer in a klp struct can have.
pub(crate) const ABS64: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_patch_may_contain_has_a_name() {
        for r_type in 0..256 {
            if relocation_width(r_type).is_some() {
                assert!(relocation_name(r_type).starts_with("R_X86_64_"), "{r_type}");
            }
        }
        assert_eq!(
            relocation_width(26),
            None,
            "GOTPC32 needs a GOT base that a patch does not have"
        );
    }
}
