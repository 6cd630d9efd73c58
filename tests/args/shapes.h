// The shapes of function that args/ calls: each comes in two versions that differ by ADD alone, from one source.
#include <stdarg.h>
#include <immintrin.h>

struct big {
	long words[12];
	double real;
};
struct small {
	long whole;
	double real;
};
struct tiny {
	short a, b, c;
};

#define SHAPES(S)                                                                                                       \
	S(ten_integers) S(ten_floats) S(ten_doubles) S(ten_long_doubles) S(mixed) S(vector) S(variadic) S(big_by_value)   \
	S(big_returned) S(small_returned) S(tiny_returned) S(pointers) S(narrow) S(complex_returned) S(int128)             \
	S(recursive)

#define DEFINE_SHAPES(NAME, SELF, ADD, ATTRIBUTES)                                                                       \
	ATTRIBUTES long NAME(ten_integers)(char a, short b, int c, long d, unsigned e, long f, int g, long h, short i,     \
					    char j)                                                                     \
	{                                                                                                              \
		BARRIER();                                                                                            \
		return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + ADD;                \
	}                                                                                                              \
	ATTRIBUTES float NAME(ten_floats)(float a, float b, float c, float d, float e, float f, float g, float h, float i, \
					   float j)                                                                     \
	{                                                                                                              \
		BARRIER();                                                                                            \
		return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + ADD;                \
	}                                                                                                              \
	ATTRIBUTES double NAME(ten_doubles)(double a, double b, double c, double d, double e, double f, double g, double h, \
					     double i, double j)                                                         \
	{                                                                                                              \
		BARRIER();                                                                                            \
		return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + ADD;                \
	}                                                                                                              \
	ATTRIBUTES long double NAME(ten_long_doubles)(long double a, long double b, long double c, long double d,           \
						       long double e, long double f, long double g, long double h,       \
						       long double i, long double j)                                      \
	{                                                                                                              \
		BARRIER();                                                                                            \
		return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + ADD;                \
	}                                                                                                              \
	ATTRIBUTES double NAME(mixed)(int a, double b, long c, float d, long double e, char f, long g, long h, long i,     \
				       double j)                                                                        \
	{                                                                                                              \
		BARRIER();                                                                                            \
		return a + 2 * b + 3 * c + 4 * d + 5 * (double)e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + ADD;        \
	}                                                                                                              \
	ATTRIBUTES __m128 NAME(vector)(__m128 a, __m128 b, __m128 c, __m128 d, __m128 e, __m128 f, __m128 g, __m128 h,     \
					__m128 i)                                                                       \
	{                                                                                                              \
		BARRIER();                                                                                            \
		return a + b + c + d + e + f + g + h + i + _mm_set1_ps(ADD);                                            \
	}                                                                                                              \
	ATTRIBUTES double NAME(variadic)(int count, ...)                                                                  \
	{                                                                                                              \
		va_list list;                                                                                         \
		va_start(list, count);                                                                                \
		double sum = ADD;                                                                                     \
		for (int i = 0; i < count; i++) {                                                                      \
			sum += va_arg(list, long);                                                                    \
			sum += va_arg(list, double);                                                                  \
		}                                                                                                     \
		va_end(list);                                                                                         \
		return sum;                                                                                           \
	}                                                                                                              \
	ATTRIBUTES long NAME(big_by_value)(int a, struct big b, int c)                                                    \
	{                                                                                                              \
		BARRIER();                                                                                            \
		long sum = a + c + (long)b.real + ADD;                                                                \
		for (int i = 0; i < 12; i++)                                                                           \
			sum += b.words[i];                                                                            \
		return sum;                                                                                           \
	}                                                                                                              \
	ATTRIBUTES struct big NAME(big_returned)(long a)                                                                  \
	{                                                                                                              \
		struct big b;                                                                                         \
		for (int i = 0; i < 12; i++)                                                                           \
			b.words[i] = a + i + ADD;                                                                     \
		b.real = a + ADD;                                                                                     \
		BARRIER();                                                                                            \
		return b;                                                                                             \
	}                                                                                                              \
	ATTRIBUTES struct small NAME(small_returned)(long a, double b)                                                    \
	{                                                                                                              \
		BARRIER();                                                                                            \
		return (struct small){ a + ADD, b + ADD };                                                            \
	}                                                                                                              \
	ATTRIBUTES struct tiny NAME(tiny_returned)(short a)                                                               \
	{                                                                                                              \
		BARRIER();                                                                                            \
		return (struct tiny){ a + ADD, a + 1 + ADD, a + 2 + ADD };                                             \
	}                                                                                                              \
	ATTRIBUTES const char *NAME(pointers)(const char *a, const char **b, long (*c)(long), long d)                       \
	{                                                                                                              \
		BARRIER();                                                                                            \
		*b = a + c(d) + ADD;                                                                                  \
		return *b;                                                                                            \
	}                                                                                                              \
	ATTRIBUTES unsigned char NAME(narrow)(unsigned char a, _Bool b, signed char c)                                      \
	{                                                                                                              \
		BARRIER();                                                                                            \
		return a + b + c + ADD;                                                                               \
	}                                                                                                              \
	ATTRIBUTES _Complex double NAME(complex_returned)(_Complex double a, float b)                                       \
	{                                                                                                              \
		BARRIER();                                                                                            \
		return a + b + ADD;                                                                                   \
	}                                                                                                              \
	ATTRIBUTES __int128 NAME(int128)(__int128 a, long b)                                                              \
	{                                                                                                              \
		BARRIER();                                                                                            \
		return (a << 70) + b + ADD;                                                                           \
	}                                                                                                              \
	ATTRIBUTES long NAME(recursive)(long depth)                                                                       \
	{                                                                                                              \
		BARRIER();                                                                                            \
		return depth ? SELF(recursive)(depth - 1) + 1 + ADD : 0;                                                \
	}
