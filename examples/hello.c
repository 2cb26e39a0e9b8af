/* SPDX-License-Identifier: MIT */
/* hello.c - the smallest program: memory from the arena. */
#include <stdio.h>
#include <string.h>
#include <arena/arena.h>

int main(void)
{
	arena_t *a;
	char *p;

	if (arena_open(NULL, &a))
		return perror("arena_open"), 1;
	p = arena_mmap(a, NULL, 32 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);
	if (p == MAP_FAILED)
		return perror("arena_mmap"), 1;
	strcpy(p, "hello from the arena"); /* the first touch faults a frame in */
	printf("%s: address %p, frame %lld\n", p, (void *)p, (long long)arena_virt_to_pfn(a, p));
	arena_close(a); /* everything goes back */
	return 0;
}
