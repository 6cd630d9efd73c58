// For programs without commands of their own.
static const char *scn_command(const char *line)
{
	(void)line;
	return "unknown command";
}
