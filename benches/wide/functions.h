// ALL_16(X): X(000) ... X(00f), and so on up to ALL_1024.
#define ROW(X, r) X(r##0) X(r##1) X(r##2) X(r##3) X(r##4) X(r##5) X(r##6) X(r##7) X(r##8) X(r##9) X(r##a) X(r##b) \
	X(r##c) X(r##d) X(r##e) X(r##f)
#define BLOCK(X, p) ROW(X, p##0) ROW(X, p##1) ROW(X, p##2) ROW(X, p##3) ROW(X, p##4) ROW(X, p##5) ROW(X, p##6) \
	ROW(X, p##7) ROW(X, p##8) ROW(X, p##9) ROW(X, p##a) ROW(X, p##b) ROW(X, p##c) ROW(X, p##d) ROW(X, p##e)     \
	ROW(X, p##f)
#define ALL_16(X) ROW(X, 00)
#define ALL_32(X) ALL_16(X) ROW(X, 01)
#define ALL_64(X) ALL_32(X) ROW(X, 02) ROW(X, 03)
#define ALL_256(X) BLOCK(X, 0)
#define ALL_1024(X) BLOCK(X, 0) BLOCK(X, 1) BLOCK(X, 2) BLOCK(X, 3)
// 16 of each 256.
#define ALL_SPREAD(X) ROW(X, 00) ROW(X, 10) ROW(X, 20) ROW(X, 30)
