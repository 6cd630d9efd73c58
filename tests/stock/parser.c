/* Says for each line of its input what a libexpat, whose path it gets, has to say of that as a document. */
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

typedef void *create(const char *);
typedef int parse(void *, const char *, int, int);
typedef int code(void *);
typedef void release(void *);

int main(int argc, char **argv)
{
	void *library = argc > 1 ? dlopen(argv[1], RTLD_NOW) : NULL;
	char line[256];

	if (!library) {
		fprintf(stderr, "%s\n", dlerror());
		return 1;
	}
	create *new_parser = (create *)dlsym(library, "XML_ParserCreate");
	parse *run = (parse *)dlsym(library, "XML_Parse");
	code *error = (code *)dlsym(library, "XML_GetErrorCode");
	release *end = (release *)dlsym(library, "XML_ParserFree");
	if (!new_parser || !run || !error || !end)
		return 1;
	while (fgets(line, sizeof(line), stdin)) {
		void *parser = new_parser(NULL);

		run(parser, line, (int)strcspn(line, "\n"), 1);
		printf("%d\n", error(parser));
		fflush(stdout);
		end(parser);
	}
	return 0;
}
