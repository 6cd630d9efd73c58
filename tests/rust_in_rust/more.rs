struct Square(i32);

impl std::fmt::Display for Square {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (self.0 * self.0).fmt(formatter)
    }
}

#[unsafe(no_mangle)]
pub fn lp_job(x: i32) -> String {
    if x >= 100 {
        panic!("the patch does not like {x}");
    }
    format!("new {x}, {}", Square(x))
}
