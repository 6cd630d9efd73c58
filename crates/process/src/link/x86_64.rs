//! The relocations of x86-64 object files (psABI, tables 4.9 and 4.10): how each is computed, and the instruction
//! sequences that go with some of them.

/// Bytes of a veneer: `jmp *slot(%rip)`, padded.
pub(super) const VENEER_SIZE: u64 = 8;
/// What fills the space between functions: `int3`.
pub(super) const FILLER: u8 = 0xcc;

/// A field in a section and the values it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    /// One byte, signed or unsigned.
    Byte,
    /// Two bytes, signed or unsigned.
    Half,
    /// One byte, signed.
    Signed8,
    /// Two bytes, signed.
    Signed16,
    /// Four bytes, zero-extended when used.
    Unsigned32,
    /// Four bytes, sign-extended when used.
    Signed32,
    /// Eight bytes, modulo 2^64.
    Word64,
}

/// How a relocation is computed. S: the symbol, A: the addend, P: the place, L: S or a veneer for it, G: the symbol's
/// GOT slot, GOT: the start of the GOT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Nothing.
    None,
    /// S + A
    Absolute(Field),
    /// S + A - P
    Relative(Field),
    /// L + A - P, known to be a call or a jump.
    Branch,
    /// G + A - P
    GotRelative(Field),
    /// G + A - GOT
    GotOffset(Field),
    /// S + A - GOT
    FromGot,
    /// GOT + A - P
    GotBase(Field),
    /// Size of the symbol + A
    Size(Field),
    /// Call of __tls_get_addr for one variable.
    GeneralDynamic,
    /// Call of __tls_get_addr for the module's storage.
    LocalDynamic,
    /// Offset in the module's storage, added to what LocalDynamic gives.
    ModuleOffset(Field),
    /// A GOT slot with the offset from the thread pointer, relative to P.
    ThreadSlot,
    /// Offset from the thread pointer.
    ThreadOffset(Field),
    /// Address of a TLS descriptor.
    Descriptor,
    /// Call through a TLS descriptor.
    DescriptorCall,
}

/// How a relocation type is computed; nothing for types that no compiler emits into object files.
pub(super) fn classify(r_type: u32) -> Option<Class> {
    Some(match r_type {
        0 => Class::None,
        1 => Class::Absolute(Field::Word64),
        2 => Class::Relative(Field::Signed32),
        3 => Class::GotOffset(Field::Signed32),
        4 => Class::Branch,
        9 | 41 | 42 => Class::GotRelative(Field::Signed32),
        10 => Class::Absolute(Field::Unsigned32),
        11 => Class::Absolute(Field::Signed32),
        12 => Class::Absolute(Field::Half),
        13 => Class::Relative(Field::Signed16),
        14 => Class::Absolute(Field::Byte),
        15 => Class::Relative(Field::Signed8),
        17 => Class::ModuleOffset(Field::Word64),
        18 => Class::ThreadOffset(Field::Word64),
        19 => Class::GeneralDynamic,
        20 => Class::LocalDynamic,
        21 => Class::ModuleOffset(Field::Signed32),
        22 => Class::ThreadSlot,
        23 => Class::ThreadOffset(Field::Signed32),
        24 => Class::Relative(Field::Word64),
        25 | 31 => Class::FromGot,
        26 => Class::GotBase(Field::Signed32),
        27 | 30 => Class::GotOffset(Field::Word64),
        28 => Class::GotRelative(Field::Word64),
        29 => Class::GotBase(Field::Word64),
        32 => Class::Size(Field::Unsigned32),
        33 => Class::Size(Field::Word64),
        34 => Class::Descriptor,
        35 => Class::DescriptorCall,
        _ => return None,
    })
}

/// `R_X86_64_...`, or the number of a type that has no name here.
pub(super) fn name(r_type: u32) -> String {
    const NAMES: [&str; 52] = [
        "NONE",
        "64",
        "PC32",
        "GOT32",
        "PLT32",
        "COPY",
        "GLOB_DAT",
        "JUMP_SLOT",
        "RELATIVE",
        "GOTPCREL",
        "32",
        "32S",
        "16",
        "PC16",
        "8",
        "PC8",
        "DTPMOD64",
        "DTPOFF64",
        "TPOFF64",
        "TLSGD",
        "TLSLD",
        "DTPOFF32",
        "GOTTPOFF",
        "TPOFF32",
        "PC64",
        "GOTOFF64",
        "GOTPC32",
        "GOT64",
        "GOTPCREL64",
        "GOTPC64",
        "GOTPLT64",
        "PLTOFF64",
        "SIZE32",
        "SIZE64",
        "GOTPC32_TLSDESC",
        "TLSDESC_CALL",
        "TLSDESC",
        "IRELATIVE",
        "RELATIVE64",
        "PC32_BND",
        "PLT32_BND",
        "GOTPCRELX",
        "REX_GOTPCRELX",
        "CODE_4_GOTPCRELX",
        "CODE_4_GOTTPOFF",
        "CODE_4_GOTPC32_TLSDESC",
        "CODE_5_GOTPCRELX",
        "CODE_5_GOTTPOFF",
        "CODE_5_GOTPC32_TLSDESC",
        "CODE_6_GOTPCRELX",
        "CODE_6_GOTTPOFF",
        "CODE_6_GOTPC32_TLSDESC",
    ];
    match usize::try_from(r_type).ok().and_then(|at| NAMES.get(at)) {
        Some(name) => format!("R_X86_64_{name}"),
        None => format!("type {r_type}"),
    }
}

/// Why a field was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreError {
    /// It does not lie in the bytes.
    Outside,
    /// The value does not fit.
    Overflow,
}

/// Writes a value into the field at `offset`.
pub(super) fn store(
    bytes: &mut [u8],
    offset: u64,
    field: Field,
    value: i128,
) -> Result<(), StoreError> {
    let overflow = |_| StoreError::Overflow;
    let signed_or_not = |bits: u32| {
        let limit = 1i128 << bits;
        if value >= -(limit >> 1) && value < limit {
            Ok(())
        } else {
            Err(StoreError::Overflow)
        }
    };
    let word = value.to_le_bytes();
    let size = match field {
        Field::Byte => signed_or_not(8).map(|()| 1)?,
        Field::Half => signed_or_not(16).map(|()| 2)?,
        Field::Signed8 => i8::try_from(value).map(|_| 1).map_err(overflow)?,
        Field::Signed16 => i16::try_from(value).map(|_| 2).map_err(overflow)?,
        Field::Unsigned32 => u32::try_from(value).map(|_| 4).map_err(overflow)?,
        Field::Signed32 => i32::try_from(value).map(|_| 4).map_err(overflow)?,
        Field::Word64 => 8,
    };
    write(bytes, offset, word.get(..size).unwrap_or_default()).ok_or(StoreError::Outside)
}

/// Copies `new` over the bytes at `offset`, if all of them are there.
pub(super) fn write(bytes: &mut [u8], offset: u64, new: &[u8]) -> Option<()> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(new.len())?;
    bytes.get_mut(start..end)?.copy_from_slice(new);
    Some(())
}

/// Whether the four bytes at `offset` are the target of a `call`, `jmp` or `jcc`. An operand relative to rip cannot
/// look like one: its ModRM byte, which precedes the field, is below 0x40.
pub(super) fn is_branch(bytes: &[u8], offset: u64) -> bool {
    let Ok(at) = usize::try_from(offset) else {
        return false;
    };
    let before = |distance: usize| {
        at.checked_sub(distance)
            .and_then(|at| bytes.get(at))
            .copied()
    };
    match before(1) {
        Some(0xe8 | 0xe9) => true,
        Some(0x80..=0x8f) => before(2) == Some(0x0f),
        _ => false,
    }
}

/// `jmp *slot(%rip)` for a veneer at `avma`.
pub(super) fn veneer(avma: u64, slot: u64) -> Option<[u8; 8]> {
    let distance = i128::from(slot) - i128::from(avma) - 6;
    let [a, b, c, d] = i32::try_from(distance).ok()?.to_le_bytes();
    Some([0xff, 0x25, a, b, c, d, FILLER, FILLER])
}

/// A sequence that calls __tls_get_addr, found around its first relocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TlsCall {
    start: u64,
    length: usize,
    /// Offset of the field of the call, which has a relocation of its own.
    pub call_field: u64,
}

fn matches(bytes: &[u8], start: u64, pattern: &[u8]) -> bool {
    let Ok(start) = usize::try_from(start) else {
        return false;
    };
    bytes
        .get(start..)
        .is_some_and(|tail| tail.starts_with(pattern))
}

/// `movabs $__tls_get_addr@pltoff,%rax; add %rbx,%rax; call *%rax` of -mcmodel=large; %r15 also serves as GOT pointer.
fn is_large_call(bytes: &[u8], start: u64) -> bool {
    let at = |offset: u64, code: &[u8]| {
        start
            .checked_add(offset)
            .is_some_and(|at| matches(bytes, at, code))
    };
    let add = at(10, &[0x48, 0x01, 0xd8]) || at(10, &[0x4c, 0x01, 0xf8]);
    at(0, &[0x48, 0xb8]) && add && at(13, &[0xff, 0xd0])
}

/// The general-dynamic sequence, `lea x@tlsgd(%rip),%rdi; call __tls_get_addr` with its prefixes, with and without
/// -fno-plt, and that of -mcmodel=large.
pub(super) fn general_dynamic(bytes: &[u8], field: u64) -> Option<TlsCall> {
    let start = field.checked_sub(4)?;
    let call = start.checked_add(8)?;
    let is_call = matches(bytes, call, &[0x66, 0x66, 0x48, 0xe8])
        || matches(bytes, call, &[0x66, 0x48, 0xff, 0x15]);
    if matches(bytes, start, &[0x66, 0x48, 0x8d, 0x3d]) && is_call {
        return Some(TlsCall {
            start,
            length: 16,
            call_field: start.checked_add(12)?,
        });
    }
    large_sequence(bytes, field)
}

/// The local-dynamic sequence, `lea x@tlsld(%rip),%rdi; call __tls_get_addr`, with and without -fno-plt, and that of
/// -mcmodel=large.
pub(super) fn local_dynamic(bytes: &[u8], field: u64) -> Option<TlsCall> {
    let start = field.checked_sub(3)?;
    let call = start.checked_add(7)?;
    let (length, distance) = match () {
        () if matches(bytes, call, &[0xe8]) => (12, 8),
        () if matches(bytes, call, &[0xff, 0x15]) => (13, 9),
        () => return large_sequence(bytes, field),
    };
    let call_field = start.checked_add(distance)?;
    matches(bytes, start, &[0x48, 0x8d, 0x3d]).then_some(TlsCall {
        start,
        length,
        call_field,
    })
}

/// In the large code model both sequences are alike.
fn large_sequence(bytes: &[u8], field: u64) -> Option<TlsCall> {
    let start = field.checked_sub(3)?;
    let call = start.checked_add(7)?;
    let found = matches(bytes, start, &[0x48, 0x8d, 0x3d]) && is_large_call(bytes, call);
    found.then_some(TlsCall {
        start,
        length: 22,
        call_field: start.checked_add(9)?,
    })
}

/// `mov %fs:0,%rax`
const READ_THREAD_POINTER: [u8; 9] = [0x64, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0];
/// Two nops that can follow each other, of 8 and 5 bytes.
const NOP8: [u8; 8] = [0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0];
const NOP5: [u8; 5] = [0x0f, 0x1f, 0x44, 0, 0];

/// Replaces a general-dynamic sequence: `mov %fs:0,%rax; lea offset(%rax),%rax`.
pub(super) fn write_variable_address(
    bytes: &mut [u8],
    call: TlsCall,
    tp_offset: i32,
) -> Option<()> {
    let mut code = READ_THREAD_POINTER.to_vec();
    code.extend([0x48, 0x8d, 0x80]);
    code.extend(tp_offset.to_le_bytes());
    if call.length == 22 {
        code.push(0x66);
        code.extend(NOP5);
    }
    if code.len() != call.length {
        return None;
    }
    write(bytes, call.start, &code)
}

/// Replaces a local-dynamic sequence: `mov %fs:0,%rax`, so that offsets from the thread pointer take the place of
/// those in the module.
pub(super) fn write_thread_pointer(bytes: &mut [u8], call: TlsCall) -> Option<()> {
    let mut code = Vec::with_capacity(call.length);
    if call.length < 22 {
        code.resize(call.length.checked_sub(READ_THREAD_POINTER.len())?, 0x66);
    }
    code.extend(READ_THREAD_POINTER);
    if call.length == 22 {
        code.extend(NOP8);
        code.extend(NOP5);
    }
    if code.len() != call.length {
        return None;
    }
    write(bytes, call.start, &code)
}

/// Replaces `lea x@tlsdesc(%rip),%rax` with `mov $offset,%rax`.
pub(super) fn write_descriptor(bytes: &mut [u8], field: u64, tp_offset: i32) -> Option<()> {
    let start = field.checked_sub(3)?;
    if !matches(bytes, start, &[0x48, 0x8d, 0x05]) {
        return None;
    }
    write(bytes, field, &tp_offset.to_le_bytes())?;
    write(bytes, start, &[0x48, 0xc7, 0xc0])
}

/// Replaces `call *x@tlscall(%rax)` with a two-byte nop.
pub(super) fn write_descriptor_call(bytes: &mut [u8], field: u64) -> Option<()> {
    if !matches(bytes, field, &[0xff, 0x10]) {
        return None;
    }
    write(bytes, field, &[0x66, 0x90])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_take_what_fits() {
        let mut bytes = [0; 8];
        assert_eq!(store(&mut bytes, 4, Field::Signed32, -2), Ok(()));
        assert_eq!(bytes, [0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]);
        assert_eq!(
            store(&mut bytes, 0, Field::Word64, i128::from(u64::MAX) + 2),
            Ok(())
        );
        assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(store(&mut bytes, 0, Field::Byte, 255), Ok(()));
        assert_eq!(store(&mut bytes, 0, Field::Byte, -128), Ok(()));
    }

    #[test]
    fn fields_refuse_what_does_not_fit() {
        let mut bytes = [0; 8];
        for (field, value) in [
            (Field::Byte, 256),
            (Field::Byte, -129),
            (Field::Half, 65536),
            (Field::Signed8, 128),
            (Field::Signed16, 32768),
            (Field::Unsigned32, 1 << 32),
            (Field::Unsigned32, -1),
            (Field::Signed32, 1 << 31),
            (Field::Signed32, -(1 << 31) - 1),
        ] {
            assert_eq!(
                store(&mut bytes, 0, field, value),
                Err(StoreError::Overflow),
                "{field:?} {value}"
            );
        }
        assert_eq!(
            store(&mut bytes, 5, Field::Signed32, 0),
            Err(StoreError::Outside)
        );
        assert_eq!(
            store(&mut bytes, u64::MAX, Field::Byte, 0),
            Err(StoreError::Outside)
        );
        assert_eq!(bytes, [0; 8]);
    }

    #[test]
    fn branches_are_told_from_operands() {
        assert!(is_branch(&[0xe8, 0, 0, 0, 0], 1));
        assert!(is_branch(&[0xe9, 0, 0, 0, 0], 1));
        assert!(is_branch(&[0x0f, 0x84, 0, 0, 0, 0], 2));
        assert!(!is_branch(&[0x48, 0x8b, 0x05, 0, 0, 0, 0], 3));
        assert!(!is_branch(&[0, 0x84, 0, 0, 0, 0], 2));
        assert!(!is_branch(&[0, 0, 0, 0], 0));
        assert!(!is_branch(&[], 7));
    }

    #[test]
    fn a_veneer_jumps_through_its_slot() {
        assert_eq!(
            veneer(0x1000, 0x2000),
            Some([0xff, 0x25, 0xfa, 0x0f, 0, 0, 0xcc, 0xcc])
        );
        assert_eq!(veneer(0, 1 << 40), None);
    }

    #[test]
    fn every_handled_type_has_a_name() {
        for r_type in 0..64 {
            assert!(
                classify(r_type).is_none() || name(r_type).starts_with("R_X86_64_"),
                "{r_type}"
            );
        }
        assert_eq!(name(42), "R_X86_64_REX_GOTPCRELX");
        assert_eq!(name(51), "R_X86_64_CODE_6_GOTPC32_TLSDESC");
        assert_eq!(name(4711), "type 4711");
    }

    #[test]
    fn truncated_sequences_are_left_alone() {
        let whole = [
            0x66, 0x48, 0x8d, 0x3d, 0, 0, 0, 0, 0x66, 0x66, 0x48, 0xe8, 0, 0, 0, 0,
        ];
        let call = general_dynamic(&whole, 4).unwrap();
        assert_eq!(call.call_field, 12);
        assert_eq!(write_variable_address(&mut { whole }[..14], call, 1), None);
        assert_eq!(general_dynamic(&whole, 3), None);
        assert_eq!(general_dynamic(&whole[..9], 4), None);
        assert_eq!(local_dynamic(&[0x48, 0x8d, 0x3d, 0, 0, 0, 0], 3), None);
        for length in [12, 13, 22] {
            let call = TlsCall {
                start: 0,
                length,
                call_field: 0,
            };
            assert_eq!(write_thread_pointer(&mut vec![0; length - 1], call), None);
            assert_eq!(write_thread_pointer(&mut vec![0; length], call), Some(()));
        }
    }
}
