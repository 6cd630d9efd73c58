// A coroutine of C++20: its suspended ones hold a pointer to the second half of its old body.
#include <coroutine>

struct task {
	struct promise_type {
		int value;
		task get_return_object()
		{
			return { std::coroutine_handle<promise_type>::from_promise(*this) };
		}
		std::suspend_never initial_suspend() { return {}; }
		std::suspend_always final_suspend() noexcept { return {}; }
		std::suspend_always yield_value(int number)
		{
			value = number;
			return {};
		}
		void return_void() {}
		void unhandled_exception() {}
	};
	std::coroutine_handle<promise_type> handle;
};

__attribute__((noinline)) task numbers(int first)
{
	for (;;)
		co_yield first++;
}

extern "C" int next_number(void)
{
	static task all = numbers(1);
	int value = all.handle.promise().value;
	all.handle.resume();
	return value;
}
