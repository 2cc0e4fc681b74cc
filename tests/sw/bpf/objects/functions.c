/* Functions that are not inlined, global variables of all kinds, two programs in one section. */
#define noinline __attribute__((noinline))

const volatile unsigned int factor = 3;
unsigned long long counter = 40;
static volatile unsigned long long zeros[4];

static noinline unsigned int twice(unsigned int x)
{
    zeros[1] += x;
    return 2 * x;
}

noinline unsigned int scaled(unsigned int x)
{
    return twice(x) * factor;
}

__attribute__((section("xdp"), used)) int first(void *ctx)
{
    counter++;
    return scaled(counter) + zeros[1];
}

__attribute__((section("xdp"), used)) int second(void *ctx)
{
    return twice(21);
}

__attribute__((section("license"), used)) char LICENSE[] = "GPL";
