// The exceptions of a program with the C++ library and the unwinder of LLVM. It compares types by their address.
//
//# target: clang -O2 pie
//# patch: clang -O2,-O0 pic
//# source: ../exceptions/work.cc
//# flags: -stdlib=libc++ -Qunused-arguments
//# link: -lc++ -lc++abi -lunwind
//# mappings: own
#include "../exceptions/target.c"
