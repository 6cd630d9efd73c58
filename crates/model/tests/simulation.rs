//! The loop over simulated tasks that call, return, clone and end as they like, between any two visits. After every
//! step: no task has a version on its stack that its universe does not name, unless it holds none of the replaced.

use livegraft_model::{
    Listing, Livepatch, Look, Outcome, PatchId, Pause, Slot, Standing, Target, UniverseId, Verdict,
    Version, Visit, converge,
};
use proptest::prelude::*;

/// One simulated task: where it stands, and the versions on its stack, outermost first.
#[derive(Debug, Clone)]
struct Simulated {
    id: u32,
    standing: Standing,
    stack: Vec<(Slot, Version)>,
}

struct World<'a> {
    livepatch: &'a Livepatch,
    tasks: Vec<Simulated>,
    next_id: u32,
    /// What happens between two visits.
    script: std::vec::IntoIter<(u8, u8)>,
    patience: u32,
    /// Listings leave a task out now and then.
    forgetful: bool,
}

const SLOTS: u8 = 3;

impl World<'_> {
    fn to(&self) -> UniverseId {
        self.livepatch.transition().expect("one is open").to
    }

    fn holds(&self, task: &Simulated, to: UniverseId) -> bool {
        let replaced = self.livepatch.replaced(task.standing.runs(), to);
        task.stack.iter().any(|frame| replaced.contains(frame))
    }

    /// A task does something by itself.
    fn live(&mut self) {
        let Some((who, what)) = self.script.next() else {
            // With nothing left to do every task returns to its outermost frame and then leaves that too.
            for task in &mut self.tasks {
                task.stack.pop();
            }
            return;
        };
        let index = usize::from(who) % self.tasks.len().max(1);
        if self.tasks.is_empty() {
            return;
        }
        match what % 8 {
            0 | 1 => {
                self.tasks[index].stack.pop();
            }
            2 if self.tasks.len() < 40 => {
                // clone: the creator's universe, an empty stack.
                let standing = self.tasks[index].standing;
                self.tasks.push(Simulated {
                    id: self.next_id,
                    standing,
                    stack: Vec::new(),
                });
                self.next_id += 1;
            }
            3 if self.tasks.len() > 1 => {
                self.tasks.remove(index);
            }
            _ => self.call(index, Slot(u32::from(what % SLOTS))),
        }
        self.check();
    }

    /// A call of a redirected function: through the table, or through the stub of a private one.
    fn call(&mut self, index: usize, slot: Slot) {
        let task = self.tasks[index].clone();
        if let Standing::Waiting { from, to } = task.standing
            && !self.livepatch.replaced(from, to).is_empty()
            && self
                .livepatch
                .replaced(from, to)
                .iter()
                .any(|(replaced, _)| *replaced == slot)
            && !self.holds(&task, to)
        {
            self.tasks[index].standing = Standing::In(to);
        }
        let runs = self.tasks[index].standing.runs();
        let version = self
            .livepatch
            .universe(runs)
            .expect("a live universe")
            .version(slot);
        self.tasks[index].stack.push((slot, version));
    }

    /// Invariant 2: what is on a stack is what the task's universe names.
    fn check(&self) {
        for task in &self.tasks {
            let universe = self
                .livepatch
                .universe(task.standing.runs())
                .expect("a live universe");
            for &(slot, version) in &task.stack {
                assert_eq!(universe.version(slot), version, "{task:?}");
            }
        }
    }
}

impl Target for World<'_> {
    type Task = u32;
    type Error = ();

    fn tasks(&mut self) -> Result<Listing<u32>, ()> {
        let mut tasks: Vec<u32> = self.tasks.iter().map(|task| task.id).collect();
        let forget = self.forgetful && self.script.len() % 5 == 3;
        if forget {
            tasks.pop();
        }
        Ok(Listing {
            tasks,
            complete: !forget,
        })
    }

    fn visit(
        &mut self,
        id: u32,
        judge: &mut dyn FnMut(Standing, Look) -> Verdict,
    ) -> Result<Visit, ()> {
        self.live();
        let to = self.to();
        let Some(index) = self.tasks.iter().position(|task| task.id == id) else {
            return Ok(Visit::Gone);
        };
        let task = self.tasks[index].clone();
        let look = Look {
            holds_replaced: self.holds(&task, to),
            mid_switch: false,
        };
        let verdict = judge(task.standing, look);
        match verdict {
            Verdict::Move => self.tasks[index].standing = Standing::In(to),
            Verdict::Arm => {
                let from = task.standing.runs();
                self.tasks[index].standing = Standing::Waiting { from, to };
            }
            _ => {}
        }
        self.check();
        Ok(Visit::Judged(verdict))
    }

    fn has_run(&mut self, _task: u32) -> bool {
        true
    }

    fn pause(&mut self, round: u32, _settled: usize, _busy: usize) -> Result<Pause, ()> {
        self.live();
        Ok(if round >= self.patience {
            Pause::Expired
        } else {
            Pause::GoOn
        })
    }
}

fn patches() -> impl Strategy<Value = Vec<Vec<u8>>> {
    proptest::collection::vec(proptest::collection::vec(0..SLOTS, 1..3), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Patches are loaded and unloaded in turn while tasks run; some transitions time out and are reversed.
    #[test]
    fn nobody_ever_mixes_versions(
        patches in patches(),
        script in proptest::collection::vec((any::<u8>(), any::<u8>()), 0..600),
        plan in proptest::collection::vec((0usize..4, any::<bool>(), 0u32..6), 1..12),
        forgetful in any::<bool>(),
    ) {
        let mut livepatch = Livepatch::default();
        let ids: Vec<PatchId> = patches
            .iter()
            .enumerate()
            .map(|(index, slots)| {
                let mut slots: Vec<Slot> = slots.iter().map(|&slot| Slot(u32::from(slot))).collect();
                slots.dedup();
                livepatch.add(&format!("p{index}"), slots)
            })
            .collect();
        let mut tasks: Vec<Simulated> = (0..5)
            .map(|id| Simulated { id, standing: Standing::In(UniverseId::ORIGINAL), stack: Vec::new() })
            .collect();
        let mut next_id = 5;
        let chunk = script.len() / plan.len() + 1;
        let mut scripts = script.chunks(chunk);
        for (which, load, patience) in plan {
            let which = which % ids.len();
            let begun = if load {
                livepatch.begin_load(ids[which]).map(drop)
            } else {
                livepatch.begin_unload(&format!("p{which}")).map(drop)
            };
            if begun.is_err() {
                continue;
            }
            let mut patience = patience;
            loop {
                let to = livepatch.transition().expect("one is open").to;
                let script = scripts.next().unwrap_or_default().to_vec().into_iter();
                let mut world =
                    World { livepatch: &livepatch, tasks, next_id, script, patience, forgetful };
                let outcome = converge(&mut world, to, false).expect("the world does not fail");
                tasks = world.tasks;
                next_id = world.next_id;
                match outcome {
                    Outcome::Complete => {
                        for task in &tasks {
                            prop_assert_eq!(task.standing, Standing::In(to));
                        }
                        livepatch.complete().expect("one is open");
                        break;
                    }
                    Outcome::Expired(_) => {
                        livepatch.reverse().expect("one is open");
                        // Disarm, as the engine does before it records the reverse.
                        for task in &mut tasks {
                            if let Standing::Waiting { from, .. } = task.standing {
                                task.standing = Standing::Waiting { from, to: from };
                            }
                        }
                        patience = 10_000;
                    }
                }
            }
        }
    }
}
