//! The call frame information of what was extracted.

use std::borrow::Cow;
use std::collections::HashMap;

use livegraft_patchfile::elf::Rela;
use object::elf;

use super::{Output, section};
use crate::compare::Error;
use crate::compare::frames::{Frame, Frames};
use crate::compare::module::Meaning;

impl Output<'_, '_> {
    /// The call frame information of the functions, and nothing of others.
    pub(super) fn frames(&mut self) -> Result<(), Error> {
        let new = self.new;
        let frames = Frames::new(new);
        let mut data = Vec::new();
        let mut relas = Vec::new();
        let mut cies: HashMap<(usize, u64), u64> = HashMap::new();
        for &number in &self.plan.items {
            let Some(&frame) = frames.of.get(&number) else {
                continue;
            };
            let cie = match cies.get(&(frame.section, frame.cie.0)) {
                Some(&at) => at,
                None => {
                    let at =
                        self.copy_frame(&mut data, &mut relas, frame.section, frame.cie, None)?;
                    cies.insert((frame.section, frame.cie.0), at);
                    at
                }
            };
            let Frame { section, fde, .. } = frame;
            let at = self.copy_frame(&mut data, &mut relas, section, fde, Some(number))?;
            let field = at.saturating_add(4);
            let back = (field.saturating_sub(cie) as u32).to_le_bytes();
            if let Some(place) = data.get_mut(field as usize..field.saturating_add(4) as usize) {
                place.copy_from_slice(&back);
            }
        }
        if !data.is_empty() {
            let mut sec = section(
                ".eh_frame",
                elf::SHT_PROGBITS.0,
                elf::SHF_ALLOC.0,
                Cow::Owned(data),
            );
            sec.align = 8;
            sec.relas = relas;
            self.add_section(sec);
        }
        Ok(())
    }

    fn copy_frame(
        &mut self,
        data: &mut Vec<u8>,
        relas: &mut Vec<Rela>,
        number: usize,
        (start, end): (u64, u64),
        of: Option<usize>,
    ) -> Result<u64, Error> {
        let new = self.new;
        let at = data.len() as u64;
        let bytes = new
            .section(number)
            .and_then(|s| s.data.get(start as usize..end as usize));
        data.extend_from_slice(bytes.unwrap_or(&[]));
        for rela in new.relas(number, start, end) {
            let meaning = new.meaning(rela.symbol, rela.addend);
            // An FDE describes the version that lies here.
            let own = of.and_then(|of| self.items.get(&of)).map(|h| h.1);
            let (symbol, addend) = match (meaning, own) {
                (Meaning::Item(item, at), Some(own)) if Some(item) == of => (own, at),
                _ => self.refer(meaning, None, true)?,
            };
            let offset = rela.offset.saturating_sub(start).saturating_add(at);
            relas.push(Rela {
                offset,
                r_type: rela.r_type,
                symbol,
                addend,
                via: 0,
            });
        }
        Ok(at)
    }
}
