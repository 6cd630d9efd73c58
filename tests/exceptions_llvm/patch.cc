#include "../exceptions/patch.cc"
