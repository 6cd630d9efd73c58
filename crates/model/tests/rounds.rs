//! When the loop may end: tasks that create others at the worst moment, and lists that are not complete.

use livegraft_model::{
    Listing, Look, Outcome, Pause, Standing, Target, UniverseId, Verdict, Visit, converge,
};

const OLD: Standing = Standing::In(UniverseId(0));
const NEW: Standing = Standing::In(UniverseId(1));
const WAITING: Standing = Standing::Waiting {
    from: UniverseId(0),
    to: UniverseId(1),
};

/// Tasks by number, which do what a test says at a listing or a visit.
struct World<F> {
    tasks: Vec<(u32, Standing)>,
    complete: bool,
    listings: u32,
    /// Called with the tasks after each listing.
    then: F,
}

impl<F: FnMut(&mut Vec<(u32, Standing)>, u32)> Target for World<F> {
    type Task = u32;
    type Error = ();

    fn tasks(&mut self) -> Result<Listing<u32>, ()> {
        let tasks = self.tasks.iter().map(|task| task.0).collect();
        self.listings += 1;
        (self.then)(&mut self.tasks, self.listings);
        Ok(Listing {
            tasks,
            complete: self.complete,
        })
    }

    fn visit(
        &mut self,
        id: u32,
        judge: &mut dyn FnMut(Standing, Look) -> Verdict,
    ) -> Result<Visit, ()> {
        let Some(task) = self.tasks.iter_mut().find(|task| task.0 == id) else {
            return Ok(Visit::Gone);
        };
        let verdict = judge(task.1, Look::default());
        if verdict == Verdict::Move {
            task.1 = NEW;
        }
        Ok(Visit::Judged(verdict))
    }

    fn has_run(&mut self, _task: u32) -> bool {
        true
    }

    fn pause(&mut self, _round: u32, _settled: usize, _busy: usize) -> Result<Pause, ()> {
        Ok(Pause::GoOn)
    }
}

#[track_caller]
fn all_are_new(world: &World<impl FnMut(&mut Vec<(u32, Standing)>, u32)>) {
    assert!(
        world.tasks.iter().all(|task| task.1 == NEW),
        "{:?}",
        world.tasks
    );
}

/// A task that was told to switch creates another and switches itself, both after the list was read and before its
/// first visit.
#[test]
fn child_of_a_task_that_has_just_switched_itself_is_found() {
    let mut world = World {
        tasks: vec![(1, NEW), (2, WAITING)],
        complete: true,
        listings: 0,
        then: |tasks: &mut Vec<(u32, Standing)>, listings| {
            if listings == 1 {
                tasks.push((3, OLD));
                tasks[1].1 = NEW;
            }
        },
    };
    assert_eq!(
        converge(&mut world, UniverseId(1), false),
        Ok(Outcome::Complete)
    );
    all_are_new(&world);
}

/// Without a single list that is proven complete a task is still found when it shows up in a later one, and the loop
/// ends.
#[test]
fn lists_that_prove_nothing_are_read_often() {
    let mut world = World {
        tasks: vec![(1, OLD)],
        complete: false,
        listings: 0,
        then: |tasks: &mut Vec<(u32, Standing)>, listings| {
            if listings == 10 {
                tasks.push((2, OLD));
            }
        },
    };
    assert_eq!(
        converge(&mut world, UniverseId(1), false),
        Ok(Outcome::Complete)
    );
    all_are_new(&world);
}

/// Where tasks come and go all the time, two complete lists are enough.
#[test]
fn newcomers_that_are_settled_do_not_keep_it_going() {
    let mut world = World {
        tasks: vec![(1, OLD)],
        complete: true,
        listings: 0,
        then: |tasks: &mut Vec<(u32, Standing)>, listings| {
            assert!(listings < 10, "it goes on and on");
            tasks.push((100 + listings, tasks[0].1));
        },
    };
    assert_eq!(
        converge(&mut world, UniverseId(1), false),
        Ok(Outcome::Complete)
    );
    all_are_new(&world);
}
