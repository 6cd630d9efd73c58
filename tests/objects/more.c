// Part two of the patch of objects/.
int more_calls;
static const char *text = " and more!";

const char *more_words(void)
{
	return text;
}
