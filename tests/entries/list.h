// name, argument, old result. The new result is the old one plus 1000.
#define FUNCTIONS(F)                                                                                                    \
	F(e_endbr, 0, 101) F(e_riprel, 0, 102) F(e_riplea, 0, 103) F(e_call, 0, 104) F(e_call_indirect, 0, 105)            \
	F(e_jmp8, 0, 106) F(e_jmp32, 0, 107) F(e_jcc8, 0, 108) F(e_jcc32, 0, 109) F(e_jrcxz, 0, 110) F(e_push, 0, 111)     \
	F(e_movabs, 0, 112) F(e_five, 0, 113) F(e_self, 0, 114) F(e_one, 0, 7) F(e_two, 0, 7) F(e_three, 117, 117)         \
	F(e_four, 118, 118) F(e_pair_a, 119, 119) F(e_pair_b, 0, 120) F(e_page_1, 0, 121) F(e_page_2, 0, 122)              \
	F(e_page_3, 0, 123) F(e_page_4, 0, 124) F(e_page_5, 0, 125) F(e_self_call, 0, 126)         \
	F(e_self_far, 0, 127) F(e_tight_two, 128, 128) F(e_tight_push, 129, 129) F(e_tight_one, 0, 7)                       \
	F(e_tight_call, 0, 130) F(e_lonely, 131, 131)
