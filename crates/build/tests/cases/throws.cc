// A function that leaves by an exception alone, with what destroys its variables; a part that does is split off another.
//#Flags: -O2
//#Flags: -O1
//#Changed: _Z4faili _Z6mayberi
#include <stdexcept>
#include <string>
std::string text(int code);
[[noreturn]] __attribute__((noinline)) void fail(int code)
{
-|    std::string first = text(code), second = text(code + 1);
+|    std::string first = text(code), second = text(code + 2);
    throw std::runtime_error(first + second);
}
int maybe(int code);
__attribute__((noinline)) int mayber(int code)
{
    if (code > 2) {
-|        std::string first = text(code), second = text(code + 1);
+|        std::string first = text(code), second = text(code + 2);
        throw std::runtime_error(first + second);
    }
    return maybe(code);
}
