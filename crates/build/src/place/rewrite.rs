//! What a relocated field of the target says about the relocation's symbol, whatever the linker made of the
//! instruction around it.
//!
//! P is the address of the field, A the addend. The forms are those of the x86-64 psABI (4.4, B.2) and of the TLS
//! ABI (4.4.x), as GNU ld, gold and lld write them.

use object::elf;

use super::linked::{Linked, i32_at, u64_at};
use super::relocatable::{Form, Relocation, Section};

/// What a field says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// Nothing.
    Any,
    /// The symbol lies here.
    Address(u64),
    /// The dynamic loader looks the symbol up under this name.
    Import(&'a [u8]),
    /// The symbol is thread-local and lies here in the TLS block.
    ThreadLocal(u64),
}

/// Opcodes of `op r/m, reg` that become `81 /n $imm32, reg`.
const BINARY: [u8; 8] = [0x03, 0x0b, 0x13, 0x1b, 0x23, 0x2b, 0x33, 0x3b];
/// `mov %fs:0,%rax`
const MOV_FS_0: &[u8] = b"\x64\x48\x8b\x04\x25\0\0\0\0";

/// What the target's field says; `None`: no linker makes that of what the compiler wrote. `base`: where the section
/// is taken to lie.
pub(super) fn read<'a>(
    target: &Linked<'a>,
    section: &Section<'_>,
    relocation: &Relocation,
    base: u64,
) -> Option<Value<'a>> {
    let at = u64::from(relocation.offset);
    let p = base.wrapping_add(at);
    let a = relocation.addend;
    if matches!(relocation.form, Form::Abs64) {
        return absolute(target, p, a);
    }
    let mask = section.mask(relocation)?;
    let field = relocation.offset as usize;
    let built = section.data.get(mask.clone())?;
    let runs = target.at(
        base.wrapping_add(mask.start as u64),
        mask.len().try_into().ok()?,
    )?;
    let rewritten = Rewritten {
        target,
        built,
        runs,
        field: field.checked_sub(mask.start)?,
        p,
        a,
    };
    rewritten.read(relocation.form)
}

/// A word with an address in it: from the dynamic loader where it writes it, else as it is in the file.
fn absolute<'a>(target: &Linked<'a>, p: u64, a: i64) -> Option<Value<'a>> {
    let content = u64_at(target.at(p, 8)?, 0)?;
    let Some(dynamic) = target.dynamic_at(p) else {
        return Some(Value::Address(
            content.wrapping_add_signed(a.wrapping_neg()),
        ));
    };
    match dynamic.r_type {
        elf::R_X86_64_RELATIVE => Some(Value::Address(
            dynamic.addend.wrapping_sub(a).cast_unsigned(),
        )),
        elf::R_X86_64_64 if dynamic.addend == a => target.name_of(dynamic).map(Value::Import),
        elf::R_X86_64_IRELATIVE => Some(Value::Any),
        _ => None,
    }
}

/// What a slot of the GOT is filled with.
fn slot<'a>(target: &Linked<'a>, svma: u64) -> Option<Value<'a>> {
    let content = u64_at(target.at(svma, 8)?, 0)?;
    let Some(dynamic) = target.dynamic_at(svma) else {
        return Some(Value::Address(content));
    };
    match dynamic.r_type {
        elf::R_X86_64_GLOB_DAT | elf::R_X86_64_JUMP_SLOT | elf::R_X86_64_64 => {
            target.name_of(dynamic).map(Value::Import)
        }
        elf::R_X86_64_RELATIVE => Some(Value::Address(dynamic.addend.cast_unsigned())),
        elf::R_X86_64_IRELATIVE => Some(Value::Any),
        _ => None,
    }
}

/// What a slot with an offset from the thread pointer is filled with.
fn thread_slot<'a>(target: &Linked<'a>, svma: u64) -> Option<Value<'a>> {
    let content = u64_at(target.at(svma, 8)?, 0)?;
    let Some(dynamic) = target.dynamic_at(svma) else {
        return Some(Value::ThreadLocal(content.wrapping_add(target.tls_size())));
    };
    match (dynamic.r_type, target.name_of(dynamic)) {
        (elf::R_X86_64_TPOFF64 | elf::R_X86_64_TLSDESC, Some(name)) => Some(Value::Import(name)),
        (elf::R_X86_64_TPOFF64 | elf::R_X86_64_TLSDESC, None) => {
            Some(Value::ThreadLocal(target.thread_local(dynamic)))
        }
        _ => None,
    }
}

/// The two words of a general dynamic slot: module, offset.
fn module_slot<'a>(target: &Linked<'a>, svma: u64) -> Option<Value<'a>> {
    let dynamic = target.dynamic_at(svma)?;
    if dynamic.r_type != elf::R_X86_64_DTPMOD64 {
        return None;
    }
    match target.name_of(dynamic) {
        Some(name) => Some(Value::Import(name)),
        None => {
            let offset = u64_at(target.at(svma.checked_add(8)?, 8)?, 0)?;
            Some(Value::ThreadLocal(offset))
        }
    }
}

/// The bytes that a linker may write for one relocation, as built and as they are in the target.
struct Rewritten<'t, 'a> {
    target: &'t Linked<'a>,
    built: &'t [u8],
    runs: &'a [u8],
    /// Where the field was, in both.
    field: usize,
    p: u64,
    a: i64,
}

impl<'a> Rewritten<'_, 'a> {
    fn read(&self, form: Form) -> Option<Value<'a>> {
        let field = || i32_at(self.runs, self.field);
        let wide = || u64_at(self.runs, self.field);
        let from_tp = |offset: i64| {
            let offset = offset.wrapping_sub(self.a).cast_unsigned();
            Value::ThreadLocal(offset.wrapping_add(self.target.tls_size()))
        };
        Some(match form {
            Form::Abs64 | Form::Opaque(_) | Form::TlsCall => Value::Any,
            Form::Abs32 => Value::Address(
                (field()?.cast_unsigned() & 0xffff_ffff).wrapping_add_signed(self.a.wrapping_neg()),
            ),
            Form::Abs32S => Value::Address(field()?.wrapping_sub(self.a).cast_unsigned()),
            Form::Pc32 => Value::Address(self.pc_relative(field()?)),
            Form::Pc64 => Value::Address(self.pc_relative(wide()?.cast_signed())),
            Form::Got { .. } => return self.got(),
            Form::TlsGd => return self.general_dynamic(),
            Form::TlsLd => return self.local_dynamic(),
            Form::TlsIe => return self.initial_exec(),
            Form::TlsDesc => return self.descriptor(),
            Form::TlsDescCall => {
                let rewritten = self.runs == b"\x66\x90";
                return (rewritten || self.runs == self.built).then_some(Value::Any);
            }
            Form::TpOff32 => from_tp(field()?),
            Form::TpOff64 => from_tp(wide()?.cast_signed()),
            // In an executable its sequence was rewritten, so that it starts from the thread pointer.
            Form::DtpOff32 if self.target.executable => from_tp(field()?),
            Form::DtpOff32 => Value::ThreadLocal(field()?.wrapping_sub(self.a).cast_unsigned()),
            Form::DtpOff64 => Value::Any,
        })
    }

    /// P + field - A
    fn pc_relative(&self, field: i64) -> u64 {
        self.p.wrapping_add_signed(field.wrapping_sub(self.a))
    }

    /// The bytes in front of the field: as built, and as they are.
    fn fronts(&self) -> Option<(&[u8], &'a [u8])> {
        Some((self.built.get(..self.field)?, self.runs.get(..self.field)?))
    }

    /// The same but for the field: what it leads to.
    fn unchanged(&self) -> Option<u64> {
        let (built, runs) = self.fronts()?;
        let after = self.field.checked_add(4)?;
        let same = built == runs && self.built.get(after..) == self.runs.get(after..);
        same.then(|| i32_at(self.runs, self.field).map(|field| self.pc_relative(field)))?
    }

    /// GOTPCREL, GOTPCRELX, REX_GOTPCRELX.
    fn got(&self) -> Option<Value<'a>> {
        if let Some(at) = self.unchanged() {
            return slot(self.target, at);
        }
        let (built, runs) = self.fronts()?;
        let field = i32_at(self.runs, self.field)?;
        let (rex_built, built) = built.split_at(built.len().checked_sub(2)?);
        let (rex, runs) = runs.split_at(runs.len().checked_sub(2)?);
        let (&[op, modrm], &[op_now, modrm_now]) = (built, runs) else {
            return None;
        };
        // call *f@GOTPCREL(%rip), jmp *f@GOTPCREL(%rip)
        if op == 0xff && rex == rex_built {
            let shorter = i32_at(self.runs, self.field.checked_sub(1)?)?;
            let last = *self.runs.get(self.field.checked_add(3)?)?;
            let next = |end: u64, by: i64| Value::Address(end.wrapping_add_signed(by));
            return match (modrm, op_now, modrm_now) {
                (0x15, _, 0xe8) if matches!(op_now, 0x67 | 0x90 | 0x2e | 0x3e) => {
                    Some(next(self.p.wrapping_add(4), field))
                }
                (0x15, 0xe8, _) | (0x25, 0xe9, _) if last == 0x90 => {
                    Some(next(self.p.wrapping_add(3), shorter))
                }
                _ => None,
            };
        }
        let register = modrm >> 3 & 7;
        let memory = modrm & 0xc7 == 0x05;
        // mov x@GOTPCREL(%rip),%reg -> lea x(%rip),%reg
        if memory && op == 0x8b && op_now == 0x8d && modrm_now == modrm && rex == rex_built {
            return Some(Value::Address(self.pc_relative(field)));
        }
        // -> mov, test, or another operation, with the address itself
        let immediate = match op {
            0x8b => (0xc7, 0xc0 | register),
            0x85 => (0xf7, 0xc0 | register),
            _ if BINARY.contains(&op) => (0x81, 0xc0 | op & 0x38 | register),
            _ => return None,
        };
        let rex_fits = match (rex_built, rex) {
            ([], []) => true,
            ([old], [new]) => {
                let moved = moved_to_base(*old);
                *new == moved || *new == moved & !0x08
            }
            _ => false,
        };
        let fits = memory && (op_now, modrm_now) == immediate && rex_fits;
        let wide = rex.first().is_some_and(|rex| rex & 0x08 != 0);
        let address = if wide {
            field.cast_unsigned()
        } else {
            field.cast_unsigned() & 0xffff_ffff
        };
        fits.then_some(Value::Address(address))
    }

    /// An offset from the thread pointer.
    fn local_exec(&self, at: usize) -> Option<Value<'a>> {
        let offset = i32_at(self.runs, at)?.cast_unsigned();
        Some(Value::ThreadLocal(
            offset.wrapping_add(self.target.tls_size()),
        ))
    }

    /// `data16 lea x@tlsgd(%rip),%rdi; data16 data16 rex.W call __tls_get_addr@PLT`, or through its slot.
    fn general_dynamic(&self) -> Option<Value<'a>> {
        if let Some(rest) = self.runs.strip_prefix(MOV_FS_0) {
            // lea x@tpoff(%rax),%rax
            if rest.starts_with(b"\x48\x8d\x80") {
                return self.local_exec(MOV_FS_0.len().checked_add(3)?);
            }
            // add x@gottpoff(%rip),%rax
            if rest.starts_with(b"\x48\x03\x05") {
                let at = i32_at(rest, 3)?;
                let end = self.p.wrapping_add(12);
                return thread_slot(self.target, end.wrapping_add_signed(at));
            }
            return None;
        }
        let (built, runs) = self.fronts()?;
        let field = i32_at(self.runs, self.field)?;
        let call = self.field.checked_add(4)?..self.field.checked_add(8)?;
        let direct = self.runs.get(call.clone())? == b"\x66\x48\x67\xe8";
        let same = built == runs && (direct || self.built.get(call.clone()) == self.runs.get(call));
        same.then(|| module_slot(self.target, self.pc_relative(field)))?
    }

    /// `lea x@tlsld(%rip),%rdi; call __tls_get_addr@PLT`, or through its slot.
    fn local_dynamic(&self) -> Option<Value<'a>> {
        let prefix = self.runs.len().checked_sub(MOV_FS_0.len())?;
        let (front, back) = self.runs.split_at(prefix);
        if back == MOV_FS_0 && front.iter().all(|&byte| byte == 0x66) {
            return Some(Value::Any);
        }
        let (built, runs) = self.fronts()?;
        let call = self.field.checked_add(4)?..self.runs.len().checked_sub(4)?;
        let direct = self.runs.get(call.clone())? == b"\x67\xe8";
        let same = built == runs && (direct || self.built.get(call.clone()) == self.runs.get(call));
        same.then_some(Value::Any)
    }

    /// `mov x@gottpoff(%rip),%reg`, `add x@gottpoff(%rip),%reg`.
    fn initial_exec(&self) -> Option<Value<'a>> {
        if let Some(at) = self.unchanged() {
            return thread_slot(self.target, at);
        }
        let (&[rex, op, modrm], runs) = self.fronts()? else {
            return None;
        };
        let register = modrm >> 3 & 7;
        let moved = moved_to_base(rex);
        let fits = match op {
            0x8b => runs == [moved, 0xc7, 0xc0 | register],
            0x03 => {
                let both = moved | rex & 0x04;
                runs == [both, 0x8d, 0x80 | register | register << 3]
                    || runs == [moved, 0x81, 0xc0 | register]
            }
            _ => false,
        };
        (fits && modrm & 0xc7 == 0x05).then(|| self.local_exec(self.field))?
    }

    /// `lea x@tlsdesc(%rip),%rax`
    fn descriptor(&self) -> Option<Value<'a>> {
        if let Some(at) = self.unchanged() {
            return thread_slot(self.target, at);
        }
        let (&[rex, 0x8d, modrm], runs) = self.fronts()? else {
            return None;
        };
        let register = modrm >> 3 & 7;
        if runs == [moved_to_base(rex), 0xc7, 0xc0 | register] {
            return self.local_exec(self.field);
        }
        let field = i32_at(self.runs, self.field)?;
        (runs == [rex, 0x8b, modrm]).then(|| thread_slot(self.target, self.pc_relative(field)))?
    }
}

/// A REX prefix for a register that was in ModRM.reg and now is in ModRM.rm.
fn moved_to_base(rex: u8) -> u8 {
    rex & !0x05 | (rex & 0x04) >> 2
}
